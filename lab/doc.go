// Package lab makes several real hosts on one machine: each with its own
// network, mounts, processes, host name, /run, /etc, /var/lib, cgroups and
// Docker daemon, joined by a switch that exists in a network namespace of its
// own, so that the machine's own network is not touched. Newcomers try
// clusters in it and tests get their hosts from it.
//
// A host is one holder process, init of the host's process namespace, which
// starts the host's services and keeps their children. Killing the holder is
// pulling the host's plug: the kernel ends everything inside at once. All that
// a lab consists of is written down before it is made (see state), so that
// Down, from any process and after any crash, leaves nothing behind.
//
// The package must not know what runs in the hosts: callers pass the services.
package lab
