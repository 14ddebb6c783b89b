# A part of dom0_init.sh: this dom0 is worked with by ssh. It has a network card of QEMU's, and one
# key that opens it.
must "insmod e1000" insmod /modules/e1000.ko
must network ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
must loopback ifconfig lo 127.0.0.1 up
mkdir -p /root/.ssh /etc/dropbear /usr/sbin /usr/bin /var/tmp
cp /pvmmu/key /root/.ssh/authorized_keys
chmod 700 / /root /root/.ssh
chmod 600 /root/.ssh/authorized_keys
echo 'root:x:0:0:root:/root:/bin/sh' > /etc/passwd
echo 'root:x:0:' > /etc/group
# Where programs are on a machine of its own.
for program in /tools/*; do
    ln -s "$program" /usr/sbin/
done
must dropbear dropbear -R -s
say "ready"
while :; do
    sleep 1000
done
