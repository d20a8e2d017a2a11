#!/bin/sh
# The guest's only program: looks at its hardware, counts this boot, tells it, powers off.
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -o remount,rw / || echo "TINY-FAILED remount" >/dev/ttyS0
mount -a 2>/dev/ttyS0 || echo "TINY-FAILED mount -a" >/dev/ttyS0
boots=$(cat /var/log/counter 2>/dev/null || echo 0)
boots=$((boots + 1))
echo $boots >/var/log/counter
sync
device=$(awk '$2 == "/" && $1 != "rootfs" { print $1 }' /proc/mounts | tail -n 1)
[ -b "$device" ] || device=$1
drivers=
for disk in /sys/block/*; do
  [ -e "$disk/device" ] || continue
  for place in "$disk" $(cd -P "$disk/device" && while [ "$PWD" != / ]; do echo "$PWD"; cd ..; done); do
    [ -e "$place/driver" ] && drivers="$drivers$(basename "$(readlink "$place/driver")"),"
  done
done
cards=
for alias in $(cat /sys/bus/pci/devices/*/modalias); do modprobe -q "$alias" 2>/dev/null; done
for card in /sys/class/net/*; do
  [ -e "$card/device/driver" ] || continue
  cards="$cards$(basename "$(readlink "$card/device/driver")")/$(cat "$card/address"),"
done
mounts=$(awk '/^\/dev/ { print $2 }' /proc/mounts | sort | tr '\n' ',')
echo "TINY-READY boot=$boots root=$(basename "$device") mounts=$mounts drivers=$drivers cards=$cards kernel=$(uname -r)" >/dev/ttyS0
[ -x /etc/rc.test ] && /etc/rc.test >/dev/ttyS0 2>&1
[ -e /etc/tiny.stay ] && sleep 3600
poweroff -f
