// Package backup is the file in which a cluster's state is kept outside the
// cluster: everything that Drover has in its state store at one revision, with
// the secrets encrypted. It knows the file's form and how it is checked, not
// what the records mean nor how they come back (package recovery).
package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/drover-data/drover/api"
)

// The file, see docs/format/backup.md:
//
//	drover-backup 1 <SHA-256 of all that follows, hexadecimal>\n
//	<header, JSON in one line>\n
//	<records, JSON, one a line, together one zstd frame>
const (
	magic  = "drover-backup"
	Format = 1
)

// Limits of what is read from a file, which may be damaged.
const (
	maxHeader  = 8 << 20
	maxRecords = 8 << 30
	maxRecord  = 4 << 20
)

// Header says what a backup is of.
type Header struct {
	Format   int         `json:"format"`
	Software string      `json:"software"` // version of the binary that wrote it
	Cluster  api.Cluster `json:"cluster"`
	Taken    time.Time   `json:"taken"`
	Node     string      `json:"node"`     // that wrote it
	Revision int64       `json:"revision"` // of the state store
	Records  int         `json:"records"`
	// Digest is that of the records' text; it is repeated among the secrets, so
	// that these cannot be put before other records.
	Digest string `json:"digest"`
	// Sealed says how Secrets are kept: "age", or "clear".
	Sealed  string `json:"sealed"`
	Secrets []byte `json:"secrets"`
}

// Record is one key of the state store.
type Record struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
}

// Secrets are the records that are worth a cluster.
type Secrets struct {
	Digest  string            `json:"digest"`
	Cluster string            `json:"cluster"`
	Values  map[string][]byte `json:"values"` // by key
}

// Backup is what a file holds.
type Backup struct {
	Header  Header
	Records []Record
}

// Seal is how the secrets are to be kept. Without any of the three it is
// refused: whoever has the CA's key is the cluster.
type Seal struct {
	Passphrase string   `json:"passphrase,omitempty"`
	Recipients []string `json:"recipients,omitempty" doc:"age public keys, age1…"`
	Clear      bool     `json:"clear,omitempty" doc:"write them unencrypted"`
}

func (s Seal) recipients() ([]age.Recipient, error) {
	const op = "encrypt backup"
	switch {
	case s.Passphrase != "" && (len(s.Recipients) > 0 || s.Clear), len(s.Recipients) > 0 && s.Clear:
		return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "more than one way to keep its secrets is given", Next: "give a passphrase, or recipients, or say that it may be in clear"}
	case s.Passphrase != "":
		r, err := age.NewScryptRecipient(s.Passphrase)
		return []age.Recipient{r}, err
	case len(s.Recipients) > 0:
		var out []age.Recipient
		for _, text := range s.Recipients {
			r, err := age.ParseX25519Recipient(strings.TrimSpace(text))
			if err != nil {
				return nil, &api.Error{Kind: api.Invalid, Op: op, Object: text, Reason: "it is not an age public key", Err: err, Next: "age-keygen makes a pair; the public key begins with age1"}
			}
			out = append(out, r)
		}
		return out, nil
	case s.Clear:
		return nil, nil
	}
	return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "it holds the key of the cluster's CA, with which anybody can make themselves a node or an administrator", Next: "give --passphrase-file or --recipient, or, where the file itself is kept secret, --secrets-in-clear"}
}

// Encode writes a backup as a file's text. Of the header, Format, Records,
// Digest, Sealed and Secrets are filled in.
func Encode(h Header, records []Record, secrets map[string][]byte, seal Seal) ([]byte, error) {
	recipients, err := seal.recipients()
	if err != nil {
		return nil, err
	}
	var text, packed bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	for _, r := range records {
		if err := e.Encode(r); err != nil {
			return nil, err
		}
	}
	z, err := zstd.NewWriter(&packed)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(text.Bytes()); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	h.Format, h.Records, h.Digest, h.Sealed = Format, len(records), digest(text.Bytes()), "clear"
	if h.Secrets, err = json.Marshal(Secrets{Digest: h.Digest, Cluster: h.Cluster.ID, Values: secrets}); err != nil {
		return nil, err
	}
	if recipients != nil {
		h.Sealed = "age"
		if h.Secrets, err = encrypt(h.Secrets, recipients); err != nil {
			return nil, err
		}
	}
	header, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	rest := append(append(header, '\n'), packed.Bytes()...)
	return append(fmt.Appendf(nil, "%s %d %s\n", magic, Format, digest(rest)), rest...), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func encrypt(text []byte, recipients []age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipients...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	err = w.Close()
	return out.Bytes(), err
}

func damaged(why string, err error) error {
	return &api.Error{Kind: api.Damaged, Op: "read backup", Reason: why, Err: err, Next: "use another copy of the file, or an earlier backup"}
}

// Decode reads a file's text and checks all of it, except the secrets, which
// Open reads.
func Decode(file []byte) (Backup, error) {
	var b Backup
	first, rest, found := bytes.Cut(file, []byte("\n"))
	part := strings.Fields(string(first[:min(len(first), 200)]))
	if !found || len(part) != 3 || part[0] != magic {
		return b, &api.Error{Kind: api.Invalid, Op: "read backup", Reason: "it is not a backup that drover backup wrote"}
	}
	if part[1] != fmt.Sprint(Format) {
		return b, &api.Error{Kind: api.Unsupported, Op: "read backup", Reason: "it is of format " + part[1] + ", this version reads " + fmt.Sprint(Format), Next: "use the version of Drover that wrote it, or a later one"}
	}
	if digest(rest) != part[2] {
		return b, damaged("its content is not what was written: the digest differs", nil)
	}
	header, packed, found := bytes.Cut(rest, []byte("\n"))
	if !found || len(header) > maxHeader {
		return b, damaged("it has no header", nil)
	}
	if err := json.Unmarshal(header, &b.Header); err != nil {
		return b, damaged("its header cannot be read", err)
	}
	if b.Header.Format != Format || b.Header.Cluster.ID == "" {
		return b, damaged("its header says nothing of a cluster", nil)
	}
	err := b.records(packed)
	return b, err
}

func (b *Backup) records(packed []byte) error {
	z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	if err != nil {
		return damaged("its records cannot be read", err)
	}
	defer z.Close()
	sum := sha256.New()
	lines := bufio.NewScanner(io.TeeReader(io.LimitReader(z, maxRecords), sum))
	lines.Buffer(nil, maxRecord)
	for lines.Scan() {
		var r Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil || r.Key == "" {
			return damaged(fmt.Sprintf("record %d cannot be read", len(b.Records)+1), err)
		}
		b.Records = append(b.Records, r)
	}
	if err := lines.Err(); err != nil {
		return damaged("its records cannot be read", err)
	}
	if len(b.Records) != b.Header.Records || hex.EncodeToString(sum.Sum(nil)) != b.Header.Digest {
		return damaged(fmt.Sprintf("it should have %d records and has %d, or they are others", b.Header.Records, len(b.Records)), nil)
	}
	return nil
}

// Key opens secrets: the passphrase, or age identities (AGE-SECRET-KEY-1…), as
// a key file has them.
type Key struct {
	Passphrase string
	Identities string
}

// Open reads the secrets.
func (b Backup) Open(k Key) (map[string][]byte, error) {
	const op = "open backup's secrets"
	text := b.Header.Secrets
	if b.Header.Sealed == "age" {
		var ids []age.Identity
		var err error
		switch {
		case k.Passphrase != "":
			var id *age.ScryptIdentity
			if id, err = age.NewScryptIdentity(k.Passphrase); err == nil {
				ids = append(ids, id)
			}
		case k.Identities != "":
			ids, err = age.ParseIdentities(strings.NewReader(k.Identities))
		default:
			return nil, &api.Error{Kind: api.Unauthenticated, Op: op, Reason: "they are encrypted", Next: "give --passphrase-file or --identity-file"}
		}
		if err != nil {
			return nil, &api.Error{Kind: api.Invalid, Op: op, Reason: "the key cannot be read", Err: err}
		}
		if text, err = decrypt(text, ids); err != nil {
			kind, reason := api.Damaged, "they cannot be decrypted"
			if _, wrong := errors.AsType[*age.NoIdentityMatchError](err); wrong {
				kind, reason = api.Unauthenticated, "the passphrase or key is not the one that it was encrypted for"
			}
			return nil, &api.Error{Kind: kind, Op: op, Reason: reason, Err: err}
		}
	}
	var s Secrets
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, damaged("its secrets cannot be read", err)
	}
	if s.Digest != b.Header.Digest || s.Cluster != b.Header.Cluster.ID {
		return nil, damaged("its secrets belong to other records: somebody put the file together", nil)
	}
	return s.Values, nil
}

func decrypt(text []byte, ids []age.Identity) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(text), ids...)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}
