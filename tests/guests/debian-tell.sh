#!/bin/sh
# What the tests want to know of a whole Debian; then it powers off.
count=$(cat /var/log/counter); count=$((count + 1)); echo $count >/var/log/counter
root=$(findmnt -n -o SOURCE /)
driver=$(basename "$(readlink -f /sys/class/block/$(basename "$root")/../device/../../../driver)")
cards=$(ip -o -4 address show scope global | awk '{ print $2 "/" $4 }' | tr '\n' ',')
failed=$(systemctl --failed --plain --no-legend | awk '{ print $1 }' | tr '\n' ',')
root=$(basename "$root")
echo "TINY-READY boot=$count root=$root driver=$driver cards=$cards failed=$failed" >/dev/ttyS0
systemctl --no-block poweroff
