#!/bin/sh
# boot.sh ROOT NAME: starts systemd as init of a system of its own: namespaces
# for processes, mounts, network, host name and cgroups. Its cgroups are called NAME.
set -e
root=$1 name=$2
for c in /sys/fs/cgroup/*; do
	[ -d "$c" ] || continue
	mkdir -p "$c/$name" 2>/dev/null || continue
	if [ -f "$c/cpuset.cpus" ] && [ -z "$(cat "$c/$name/cpuset.cpus")" ]; then
		cat "$c/cpuset.cpus" >"$c/$name/cpuset.cpus"
		cat "$c/cpuset.mems" >"$c/$name/cpuset.mems"
	fi
	echo $$ >"$c/$name/cgroup.procs" 2>/dev/null || true
done
[ ! -f /sys/fs/cgroup/cgroup.procs ] || { mkdir -p "/sys/fs/cgroup/$name"; echo $$ >"/sys/fs/cgroup/$name/cgroup.procs"; }
# shellcheck disable=SC2016
exec unshare --fork --kill-child --pid --mount --uts --ipc --net --cgroup sh -ec '
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
	mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
	mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
	for c in cpu cpuacct cpuset memory devices freezer blkio pids; do
		mkdir "$root/sys/fs/cgroup/$c"
		mount -t cgroup -o "$c" cgroup "$root/sys/fs/cgroup/$c" || rmdir "$root/sys/fs/cgroup/$c"
	done
	mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
	mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
	mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
fi
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s null "$root/dev/console"
for n in null zero full random urandom tty loop-control; do cp -a "/dev/$n" "$root/dev/"; done
for n in /dev/loop[0-9]*; do cp -a "$n" "$root/dev/"; done
mount -t tmpfs -o mode=755 tmpfs "$root/run"
hostname debian
ip link set lo up
ip link add v0 type veth peer name v1
ip addr add 10.98.0.1/24 dev v0
ip link set v0 up
ip link set v1 up
cd "$root"
mkdir -p old
pivot_root . old
umount -l /old
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test TERM=dumb /sbin/init
' sh "$root"
