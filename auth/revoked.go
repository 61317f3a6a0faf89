package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
)

// RevokedKeys is a set of keys that are not to be trusted, kept in a file so
// that it is known at once after a restart, also when nobody can be asked.
// It is safe for concurrent use.
type RevokedKeys struct {
	path string

	mu      sync.RWMutex // guards the maps
	reasons map[string]string
	serials map[string]bool // from the file, which knows no more
}

// OpenRevoked reads the file at path; one that is not there is an empty set,
// and is made, because etcd refuses everybody when it cannot read it.
func OpenRevoked(path string) (*RevokedKeys, error) {
	r := &RevokedKeys{path: path, reasons: map[string]string{}, serials: map[string]bool{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, WriteCRL(path, nil)
	}
	if err != nil {
		return nil, ioError("read revocations", path, err)
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, damaged(path, err.Error())
	}
	for _, e := range list.RevokedCertificateEntries {
		r.serials[e.SerialNumber.String()] = true
	}
	return r, nil
}

// Set replaces the whole set: reasons by hash of the key.
func (r *RevokedKeys) Set(reasons map[string]string) error {
	r.mu.Lock()
	r.reasons, r.serials = maps.Clone(reasons), map[string]bool{}
	r.mu.Unlock()
	return r.save()
}

// Add puts one more key into the set.
func (r *RevokedKeys) Add(keyHash, reason string) error {
	r.mu.Lock()
	r.reasons[keyHash] = reason
	r.mu.Unlock()
	return r.save()
}

func (r *RevokedKeys) save() error {
	r.mu.RLock()
	hashes := slices.Sorted(maps.Keys(r.reasons))
	r.mu.RUnlock()
	return WriteCRL(r.path, hashes)
}

// Revoked implements Revocations.
func (r *RevokedKeys) Revoked(keyHash string) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if why, ok := r.reasons[keyHash]; ok {
		if why == "" {
			why = "its key was revoked"
		}
		return why
	}
	sum, err := hex.DecodeString(keyHash)
	if err == nil && len(sum) == sha256.Size && r.serials[serialOf([sha256.Size]byte(sum)).String()] {
		return "its key was revoked"
	}
	return ""
}
