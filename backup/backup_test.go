package backup

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"pgregory.net/rapid"

	"github.com/drover-data/drover/api"
)

var header = Header{Software: "v1", Cluster: api.Cluster{ID: "c1", Incarnation: 3}, Taken: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Node: "n1", Revision: 7}

var records = []Record{{"drover/v1/volumes/1", json.RawMessage(`{"name":"a<b"}`)}, {"drover/v1/names/a", json.RawMessage(`"1"`)}}

var secrets = map[string][]byte{"drover/v1/secrets/ca": []byte("the key")}

func encode(t *testing.T, seal Seal) []byte {
	t.Helper()
	file, err := Encode(header, records, secrets, seal)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestThereAndBack(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		seal Seal
		key  Key
		bad  []Key
	}{
		{"passphrase", Seal{Passphrase: "open sesame"}, Key{Passphrase: "open sesame"}, []Key{{}, {Passphrase: "open barley"}, {Identities: id.String()}}},
		{"recipient", Seal{Recipients: []string{id.Recipient().String()}}, Key{Identities: "# a comment\n" + id.String() + "\n"}, []Key{{}, {Passphrase: "x"}, {Identities: other.String()}, {Identities: "nonsense"}}},
		{"clear", Seal{Clear: true}, Key{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := encode(t, c.seal)
			// Twice in base64: as a value, and as a part of the header.
			if shown := bytes.Contains(file, []byte("ZEdobElHdGxlUT09")) || bytes.Contains(file, []byte("dGhlIGtleQ==")); shown && !c.seal.Clear {
				t.Error("the key is in the file")
			}
			b, err := Decode(file)
			if err != nil {
				t.Fatal(err)
			}
			if b.Header.Cluster.Incarnation != 3 || len(b.Records) != 2 || string(b.Records[0].Value) != `{"name":"a<b"}` {
				t.Errorf("got %+v", b)
			}
			got, err := b.Open(c.key)
			if err != nil || string(got["drover/v1/secrets/ca"]) != "the key" {
				t.Errorf("secrets %q, %v", got, err)
			}
			for _, k := range c.bad {
				if _, err := b.Open(k); err == nil {
					t.Errorf("%+v opens it", k)
				}
			}
		})
	}
}

// Without a word about the secrets nothing is written.
func TestRefusesClearSecrets(t *testing.T) {
	for _, s := range []Seal{{}, {Passphrase: "x", Clear: true}, {Passphrase: "x", Recipients: []string{"y"}}, {Recipients: []string{"age1nonsense"}}} {
		if _, err := Encode(header, records, secrets, s); !api.Is(err, api.Invalid) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

// Every flipped bit and every cut is noticed.
func TestDamageIsNamed(t *testing.T) {
	file := encode(t, Seal{Clear: true})
	rapid.Check(t, func(t *rapid.T) {
		broken := bytes.Clone(file)
		if rapid.Bool().Draw(t, "cut") {
			broken = broken[:rapid.IntRange(0, len(file)-1).Draw(t, "length")]
		} else {
			broken[rapid.IntRange(0, len(file)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		if _, err := Decode(broken); err == nil {
			t.Fatal("it was read")
		}
	})
}

// Secrets that were put before other records are refused.
func TestSecretsBelongToRecords(t *testing.T) {
	mine, err := Decode(encode(t, Seal{Passphrase: "x"}))
	if err != nil {
		t.Fatal(err)
	}
	text, err := Encode(header, records[:1], nil, Seal{Clear: true})
	if err != nil {
		t.Fatal(err)
	}
	others, err := Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	others.Header.Sealed, others.Header.Secrets = mine.Header.Sealed, mine.Header.Secrets
	if _, err := others.Open(Key{Passphrase: "x"}); err == nil || !strings.Contains(err.Error(), "other records") {
		t.Errorf("got %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	file, err := Encode(header, records, secrets, Seal{Clear: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte("drover-backup 1 \n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := Decode(data); err == nil {
			_, _ = b.Open(Key{})
		}
		// Past the digest, so that the parts behind it are reached as well.
		_, _ = Decode(append([]byte("drover-backup 1 "+digest(data)+"\n"), data...))
	})
}
