package exchange

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/drover-data/drover/api"
	treedigest "github.com/drover-data/drover/tree/digest"
)

// KeySize is the length of a repository key, in bytes.
const KeySize = 32

// repoKey seals with keys that are derived from one, as docs/format/remote.md says.
type repoKey struct {
	id            string
	aead          cipher.AEAD
	nonce, digest []byte
}

// NewKey makes a Key of 32 secret bytes.
func NewKey(secret []byte) (Key, error) {
	if len(secret) != KeySize {
		return nil, &api.Error{Kind: api.Invalid, Op: "use key", Reason: "a repository key has 32 bytes"}
	}
	derive := func(info string) ([]byte, error) { return hkdf.Key(sha256.New, secret, nil, info, 32) }
	k := &repoKey{}
	seal, err := derive("drover seal")
	if err != nil {
		return nil, err
	}
	if k.aead, err = chacha20poly1305.NewX(seal); err != nil {
		return nil, err
	}
	if k.nonce, err = derive("drover nonce"); err != nil {
		return nil, err
	}
	if k.digest, err = derive("drover digest"); err != nil {
		return nil, err
	}
	id, err := derive("drover id")
	if err != nil {
		return nil, err
	}
	k.id = hex.EncodeToString(id[:8])
	return k, nil
}

func (k *repoKey) ID() string { return k.id }

func mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

// Seal is of layer.Sealer.
func (k *repoKey) Seal(mediaType string, plain []byte) []byte {
	nonce := mac(k.nonce, []byte(mediaType), []byte{0}, plain)[:chacha20poly1305.NonceSizeX]
	return k.aead.Seal(bytes.Clone(nonce), nonce, plain, []byte(mediaType))
}

// Open is of layer.Sealer.
func (k *repoKey) Open(mediaType string, sealed []byte) ([]byte, error) {
	if len(sealed) < chacha20poly1305.NonceSizeX {
		return nil, damaged("", "something sealed is too short")
	}
	plain, err := k.aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], []byte(mediaType))
	if err != nil {
		return nil, damaged("", "something sealed does not open with the key "+k.id)
	}
	return plain, nil
}

func (k *repoKey) Digest(s treedigest.Sum) string {
	return "hmac-sha256:" + hex.EncodeToString(mac(k.digest, s[:]))
}
