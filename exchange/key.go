package exchange

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"strings"

	"filippo.io/age"
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

// WrapKey hides a repository key for recipients: age public keys (age1…), or
// one passphrase.
func WrapKey(secret []byte, recipients []string, passphrase string) ([]byte, error) {
	const op = "wrap key"
	var to []age.Recipient
	for _, s := range recipients {
		r, err := age.ParseX25519Recipient(strings.TrimSpace(s))
		if err != nil {
			return nil, &api.Error{Kind: api.Invalid, Op: op, Object: s, Reason: "not an age recipient", Err: err, Next: "age-keygen makes a pair; give its public key (age1…)"}
		}
		to = append(to, r)
	}
	if passphrase != "" {
		if len(to) > 0 {
			return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "a key is wrapped for recipients or with a passphrase, not both"}
		}
		r, err := age.NewScryptRecipient(passphrase)
		if err != nil {
			return nil, err
		}
		to = append(to, r)
	}
	if len(to) == 0 {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "nobody could open it", Next: "give an age recipient or a passphrase"}
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(secret); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// UnwrapKey opens a wrapped key with an age identity (AGE-SECRET-KEY-1…) or a
// passphrase.
func UnwrapKey(wrapped []byte, identity, passphrase string) ([]byte, error) {
	const op = "open key"
	var with []age.Identity
	if identity != "" {
		ids, err := age.ParseIdentities(strings.NewReader(identity))
		if err != nil {
			return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "not an age identity", Next: "give the file that age-keygen wrote"}
		}
		with = append(with, ids...)
	}
	if passphrase != "" {
		id, err := age.NewScryptIdentity(passphrase)
		if err != nil {
			return nil, err
		}
		with = append(with, id)
	}
	r, err := age.Decrypt(bytes.NewReader(wrapped), with...)
	if err != nil {
		return nil, &api.Error{Kind: api.Denied, Op: op, Reason: "it does not open with what was given", Next: "check the passphrase or the identity file"}
	}
	secret, err := io.ReadAll(io.LimitReader(r, KeySize+1))
	if err != nil || len(secret) != KeySize {
		return nil, &api.Error{Kind: api.Damaged, Op: op, Reason: "it does not hold a repository key"}
	}
	return secret, nil
}
