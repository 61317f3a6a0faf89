// Package cluster makes, grows and shrinks the cluster: its first node, the
// handshake by which others join, removal, tokens, users, and which nodes are
// members of the embedded state store. It decides and writes records; it must
// not know HTTP routes (package apiserver calls Service), etcd (state.Members
// and state.Access stand for it), volumes' data, or how units are started.
package cluster
