package exchange

import (
	"bufio"
	"bytes"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"

	"github.com/drover-data/drover/api"
)

const (
	// minPassphrase is the least number of bytes of a passphrase that wraps a
	// key: whoever reads the remote can guess as long as they like.
	minPassphrase = 12
	// maxWork bounds what a wrapped key may demand of whoever opens it: 2^18 is
	// what age itself uses, and takes 256 MiB.
	maxWork = 18
)

// WrapKey hides a repository key for recipients: age public keys (age1…), or
// one passphrase.
func WrapKey(secret []byte, recipients []string, passphrase string) ([]byte, error) {
	const op = "wrap key"
	var to []age.Recipient
	for _, s := range recipients {
		r, err := age.ParseX25519Recipient(strings.TrimSpace(s))
		if err != nil {
			// What was given may be the secret half by mistake: it is not repeated.
			return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "a recipient is not an age public key", Next: "age-keygen makes a pair; give its public key (age1…)"}
		}
		to = append(to, r)
	}
	if passphrase != "" {
		if len(to) > 0 {
			return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "a key is wrapped for recipients or with a passphrase, not both", Next: "give one of them"}
		}
		if len(passphrase) < minPassphrase {
			return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: fmt.Sprintf("a passphrase of fewer than %d characters can be guessed", minPassphrase), Next: "use a longer one, or an age key (age-keygen makes one)"}
		}
		r, err := age.NewScryptRecipient(passphrase)
		if err != nil {
			return nil, err
		}
		to = append(to, r)
	}
	if len(to) == 0 {
		return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "nobody could open it", Next: "give a passphrase (--passphrase-file) or an age public key (--recipient)"}
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

// What a wrapped key opens with.
const (
	ByPassphrase = "passphrase"
	ByIdentity   = "age identity"
)

// WrappedBy says what a wrapped key opens with; "" for what cannot be read.
func WrappedBy(wrapped []byte) string {
	in := bufio.NewScanner(bytes.NewReader(wrapped))
	if !in.Scan() || in.Text() != "age-encryption.org/v1" {
		return ""
	}
	for in.Scan() {
		kind, found := strings.CutPrefix(in.Text(), "-> ")
		if !found {
			continue
		}
		if strings.HasPrefix(kind, "scrypt ") {
			return ByPassphrase
		}
		return ByIdentity
	}
	return ""
}

// UnwrapKey opens a wrapped key with an age identity (AGE-SECRET-KEY-1…) or a
// passphrase. Unauthenticated means that it is another one's, Damaged that nobody can open it.
func UnwrapKey(wrapped []byte, identity, passphrase string) ([]byte, error) {
	const op = "open key"
	by := WrappedBy(wrapped)
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
		id.SetMaxWorkFactor(maxWork)
		with = append(with, id)
	}
	switch {
	case by == "":
		return nil, &api.Error{Kind: api.Damaged, Op: op, Reason: "what the remote keeps under its name is no wrapped key", Next: "drover remote key wrap puts it there anew, from a node that has the key; a recovery copy opens it too"}
	case by == ByPassphrase && passphrase == "":
		return nil, &api.Error{Kind: api.Unauthenticated, Op: op, Reason: "it is wrapped with a passphrase", Next: "give --passphrase-file"}
	case by == ByIdentity && identity == "":
		return nil, &api.Error{Kind: api.Unauthenticated, Op: op, Reason: "it is wrapped for age public keys", Next: "give --identity-file"}
	}
	r, err := age.Decrypt(bytes.NewReader(wrapped), with...)
	if _, wrong := errors.AsType[*age.NoIdentityMatchError](err); wrong {
		if by == ByPassphrase {
			return nil, &api.Error{Kind: api.Unauthenticated, Op: op, Reason: "the passphrase is wrong", Next: "check it; a recovery copy (--recovery-file) opens it too"}
		}
		return nil, &api.Error{Kind: api.Unauthenticated, Op: op, Reason: "it is not wrapped for that identity", Next: "give the identity file of one of its recipients; a recovery copy (--recovery-file) opens it too"}
	}
	var secret []byte
	if err == nil {
		secret, err = io.ReadAll(io.LimitReader(r, KeySize+1))
	}
	if err != nil || len(secret) != KeySize {
		return nil, &api.Error{Kind: api.Damaged, Op: op, Reason: "the wrapped key is damaged", Err: err, Next: "drover remote key wrap puts it there anew, from a node that has the key; a recovery copy opens it too"}
	}
	return secret, nil
}

// copyMark begins the line of a recovery copy that counts.
const copyMark = "DROVER-REMOTE-KEY-1"

var copyText = base32.StdEncoding.WithPadding(base32.NoPadding)

// RecoveryCopy is a key as text that can be printed and typed in again.
func RecoveryCopy(secret []byte) (string, error) {
	k, err := NewKey(secret)
	if err != nil {
		return "", err
	}
	text := copyText.EncodeToString(secret)
	var groups []string
	for len(text) > 0 {
		n := min(4, len(text))
		groups, text = append(groups, text[:n]), text[n:]
	}
	return copyMark + " " + k.ID() + " " + strings.Join(groups, "-"), nil
}

// ParseRecoveryCopy reads one back, with lines around it. Its id tells a slip of the pen.
func ParseRecoveryCopy(text string) ([]byte, error) {
	bad := func(reason string) ([]byte, error) {
		return nil, &api.Error{Kind: api.Invalid, Op: "read recovery copy", Reason: reason, Next: "give what drover remote key export wrote: a line that begins with " + copyMark}
	}
	for line := range strings.Lines(text) {
		part := strings.Fields(line)
		if len(part) == 0 || part[0] != copyMark {
			continue
		}
		if len(part) < 3 {
			return bad("its line is cut off")
		}
		secret, err := copyText.DecodeString(strings.ToUpper(strings.ReplaceAll(strings.Join(part[2:], ""), "-", "")))
		if err != nil || len(secret) != KeySize {
			return bad("its line is cut off, or mistyped")
		}
		k, err := NewKey(secret)
		if err != nil {
			return nil, err
		}
		if k.ID() != strings.ToLower(part[1]) {
			return bad("its id does not fit: something in it is mistyped")
		}
		return secret, nil
	}
	return bad("no key is in it")
}
