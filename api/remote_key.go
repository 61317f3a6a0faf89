package api

import "slices"

// RemoteKey is a key that seals, or sealed, what a remote keeps.
type RemoteKey struct {
	ID string `json:"id"`
	// Use says what it is for.
	Use string `json:"use" enum:"current,old,other" doc:"current seals what is pushed; old opens what was; other is kept at the remote and not used by this volume"`
	// Here says whether the volume's node has it; Fault why it cannot be used although it has.
	Here  bool   `json:"here"`
	Fault string `json:"fault,omitempty"`
	// Wrapped says what opens the wrapped key at the remote.
	Wrapped string `json:"wrapped,omitempty" doc:"passphrase or age identity; empty: the remote does not keep it"`
	Warning string `json:"warning,omitempty" doc:"what is to be known when it was just made"`
}

// SealKey says who can open a key at the remote: whoever knows the passphrase,
// or has the secret half of one of the recipients.
type SealKey struct {
	ID         string   `json:"id,omitempty" doc:"of the key that is wrapped; empty is the current one"`
	Passphrase string   `json:"passphrase,omitempty"`
	Recipients []string `json:"recipients,omitempty" doc:"age public keys (age1…)"`
	Rotate     bool     `json:"rotate,omitempty" doc:"make a new key for a remote that has one"`
}

// OpenKey is what opens a remote's keys: one of its fields is enough.
type OpenKey struct {
	Passphrase string `json:"passphrase,omitempty"`
	Identity   string `json:"identity,omitempty" doc:"age identities (AGE-SECRET-KEY-1…)"`
	Copy       string `json:"copy,omitempty" doc:"a recovery copy, as export gives it"`
}

// KeyCopy is a key in clear, to be kept in a safe place.
type KeyCopy struct {
	ID     string `json:"id"`
	Volume string `json:"volume"`
	Remote string `json:"remote"`
	URL    string `json:"url"`
	Copy   string `json:"copy" doc:"whoever has it reads everything that is sealed with the key"`
}

// Keys are the ids of all keys that a remote needs.
func (r Remote) Keys() []string {
	if r.Key == "" {
		return r.Old
	}
	return append([]string{r.Key}, r.Old...)
}

// NeedsKey reports whether a remote of the volume is sealed with a key.
func (v Volume) NeedsKey(id string) bool {
	for _, r := range v.Remotes {
		if slices.Contains(r.Keys(), id) {
			return true
		}
	}
	return false
}
