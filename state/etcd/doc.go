// Package etcd keeps the cluster's state in etcd: the key-value port over an
// etcd client, the embedded member with its own guard in front of the client
// port, which members there should be, and the users and roles of the nodes.
// It must not know volumes, nor what the records mean beyond their prefixes.
package etcd
