#!/bin/sh
# What initramfs-tools does, in little: the modules of conf/modules, then those that the
# hardware asks for by its aliases (udev's part), until the root device is there.
export PATH=/usr/bin:/usr/sbin:/bin:/sbin
/usr/bin/busybox --install -s /usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
root=
for word in $(cat /proc/cmdline); do
  case $word in root=*) root=${word#root=} ;; esac
done
while read -r module options; do
  case $module in '' | '#'*) ;; *) modprobe "$module" $options 2>/dev/null ;; esac
done </conf/modules
device=
known=
turn=0
while [ $turn -lt 8 ]; do
  turn=$((turn + 1))
  aliases=$(find /sys/devices -name modalias | xargs cat | sort -u)
  if [ "$aliases" != "$known" ]; then
    known=$aliases
    for alias in $aliases; do modprobe -q "$alias" 2>/dev/null; done
  fi
  [ -x /usr/sbin/lvm ] && lvm vgchange -ay --sysinit >/dev/null 2>&1
  case $root in
    /dev/*) device=$root ;;
    *) device=$(findfs "$root" 2>/dev/null) ;;
  esac
  [ -b "$device" ] && break
  sleep 0.2
done
if [ ! -b "$device" ]; then
  echo "TINY-NOROOT no device for $root; disks: $(ls /sys/block | tr '\n' ' ')" >/dev/ttyS0
  poweroff -f
fi
mount -o ro "$device" /root || { echo "TINY-NOMOUNT $device" >/dev/ttyS0; poweroff -f; }
exec switch_root /root /sbin/init "$device"
