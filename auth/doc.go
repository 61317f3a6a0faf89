// Package auth says who somebody is and what they may do: the cluster's CA,
// certificates of nodes and users and their renewal, join tokens, identities
// from TLS connections, roles. It must not know HTTP routes, the state store
// or etcd; whether a key was revoked is asked through Revocations.
//
// Private keys never travel: whoever needs a certificate sends a request
// (CSR) signed with a key of its own.
package auth
