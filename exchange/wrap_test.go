package exchange

import (
	"bytes"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/drover-data/drover/api"
)

func TestWrap(t *testing.T) {
	secret := bytes.Repeat([]byte{9}, KeySize)
	mine, err := age.GenerateX25519Identity()
	must(t, err)
	other, err := age.GenerateX25519Identity()
	must(t, err)
	const phrase = "correct horse battery"
	locked, err := WrapKey(secret, nil, phrase)
	must(t, err)
	sealed, err := WrapKey(secret, []string{mine.Recipient().String()}, "")
	must(t, err)
	short, err := WrapKey(secret[:7], []string{mine.Recipient().String()}, "")
	must(t, err)
	// A remote must not make whoever opens a key use all memory.
	hungry := bytes.Replace(locked, []byte(" 18\n"), []byte(" 29\n"), 1)
	for _, x := range []struct {
		name             string
		wrapped          []byte
		identity, phrase string
		kind             api.Kind
		says             string
	}{
		{"the passphrase", locked, "", phrase, "", ""},
		{"the identity", sealed, mine.String(), "", "", ""},
		{"both", locked, mine.String(), phrase, "", ""},
		{"another passphrase", locked, "", phrase + "!", api.Unauthenticated, "the passphrase is wrong"},
		{"another identity", sealed, other.String(), "", api.Unauthenticated, "not wrapped for that identity"},
		{"a passphrase where an identity is needed", sealed, "", phrase, api.Unauthenticated, "--identity-file"},
		{"an identity where a passphrase is needed", locked, mine.String(), "", api.Unauthenticated, "--passphrase-file"},
		{"nothing", locked, "", "", api.Unauthenticated, "--passphrase-file"},
		{"not an identity", sealed, "nonsense", "", api.Invalid, "age-keygen"},
		{"cut in the header", locked[:60], "", phrase, api.Damaged, "damaged"},
		{"cut in the key", sealed[:len(sealed)-3], mine.String(), "", api.Damaged, "damaged"},
		{"a flipped bit", append(bytes.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1), mine.String(), "", api.Damaged, "damaged"},
		{"something else", []byte("hello"), "", phrase, api.Damaged, "no wrapped key"},
		{"too short a key", short, mine.String(), "", api.Damaged, "damaged"},
		{"too much work", hungry, "", phrase, api.Damaged, "work factor"},
	} {
		got, err := UnwrapKey(x.wrapped, x.identity, x.phrase)
		if api.KindOf(err) != x.kind || (err == nil) != bytes.Equal(got, secret) || err != nil && !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v", x.name, err)
		}
		if err != nil && (strings.Contains(err.Error(), phrase) || strings.Contains(err.Error(), "AGE-SECRET")) {
			t.Errorf("%s: the error has a secret in it: %v", x.name, err)
		}
	}
	for name, give := range map[string]func() ([]byte, error){
		"nobody":             func() ([]byte, error) { return WrapKey(secret, nil, "") },
		"both":               func() ([]byte, error) { return WrapKey(secret, []string{mine.Recipient().String()}, phrase) },
		"a short passphrase": func() ([]byte, error) { return WrapKey(secret, nil, "secret") },
		"the secret half":    func() ([]byte, error) { return WrapKey(secret, []string{mine.String()}, "") },
	} {
		if _, err := give(); !api.Is(err, api.Invalid) || strings.Contains(err.Error(), "AGE-SECRET") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRecoveryCopy(t *testing.T) {
	secret := bytes.Repeat([]byte{0xa5, 3}, KeySize/2)
	line, err := RecoveryCopy(secret)
	must(t, err)
	for _, text := range []string{line, "# a comment\n\n" + line + "\n", copyMark + strings.ToLower(line[len(copyMark):]), copyMark + strings.ReplaceAll(line[len(copyMark):], "-", " ")} {
		got, err := ParseRecoveryCopy(text)
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%q: %v", text, err)
		}
	}
	last := line[len(line)-1:]
	wrong := map[bool]string{true: "B", false: "A"}[last == "A"]
	for _, text := range []string{"", "hello", line[:len(line)-6], line[:len(copyMark)+10], line[:30] + wrong + line[31:], copyMark + " 0000000000000000" + line[len(copyMark)+17:]} {
		if _, err := ParseRecoveryCopy(text); !api.Is(err, api.Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzRecoveryCopy(f *testing.F) {
	line, _ := RecoveryCopy(bytes.Repeat([]byte{1}, KeySize))
	f.Add(line)
	f.Add(copyMark + " x")
	f.Fuzz(func(t *testing.T, text string) {
		secret, err := ParseRecoveryCopy(text)
		if err != nil {
			return
		}
		again, err := RecoveryCopy(secret)
		must(t, err)
		if back, err := ParseRecoveryCopy(again); err != nil || !bytes.Equal(back, secret) {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

func FuzzUnwrapKey(f *testing.F) {
	mine, err := age.GenerateX25519Identity()
	must(f, err)
	wrapped, err := WrapKey(make([]byte, KeySize), []string{mine.Recipient().String()}, "")
	must(f, err)
	f.Add(wrapped)
	f.Add([]byte("age-encryption.org/v1\n-> scrypt AAAAAAAAAAAAAAAAAAAAAA 29\n"))
	f.Fuzz(func(t *testing.T, wrapped []byte) {
		secret, err := UnwrapKey(wrapped, mine.String(), "")
		if err == nil && len(secret) != KeySize {
			t.Fatalf("%d bytes", len(secret))
		}
	})
}
