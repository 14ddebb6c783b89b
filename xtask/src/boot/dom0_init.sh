#!/bin/sh
# The only program of the Linux dom0 in an emulated machine: starts Xen's toolstack, then runs the
# guests, or lets others do that by ssh if there is a key for them.
export PATH=/bin:/tools
here=/pvmmu tag=guest

leave() {
    poweroff -f
    sleep 1000
}

name_logs() {
    log=/var/log/xen/guest-$name.log
    incoming=/var/log/xen/guest-$name--incoming.log
}

# xenconsoled writes the logs.
listen_to_guest() { :; }
stop_listening() { :; }

. /pvmmu/guests.sh

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mkdir -p /run/xen /run/xenstored /run/lock /etc/xen
: > /etc/xen/xl.conf
for module in xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs; do
    must "insmod $module" insmod "/modules/$module.ko"
done
must "mount xenfs" mount -t xenfs xenfs /proc/xen
must xenstored xenstored
must xen-init-dom0 xen-init-dom0
if [ -e /pvmmu/key ]; then
    # As on a machine of its own: nobody keeps the guests' consoles.
    must xenconsoled xenconsoled
    . /pvmmu/network.sh
else
    must xenconsoled xenconsoled --log=all --log-dir=/var/log/xen
    run_guests
fi
leave
