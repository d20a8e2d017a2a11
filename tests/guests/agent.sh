#!/bin/sh
# Answers as QEMU's guest agent does to guest-sync-delimited, and to nothing else.
for place in /sys/class/virtio-ports/*; do
  [ "$(cat "$place/name")" = org.qemu.guest_agent.0 ] && port=/dev/${place##*/}
done
while [ -n "$port" ]; do
  while read -r line; do
    id=$(echo "$line" | sed -n 's/.*guest-sync-delimited.*"id": *\([0-9]*\).*/\1/p')
    [ -n "$id" ] && printf '\377{"return": %s}\n' "$id"
  done <>"$port" >&0
  sleep 1 # nobody is there
done 2>/dev/null &
