package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net"
	"strconv"
	"strings"

	"github.com/drover-data/drover/api"
)

// Token is what `drover join` is given: one printable word without characters
// that mean something to a shell,
//
//	drover-join-1.<id>.<secret>.<addresses>.<CA hash>.<checksum>
//
// where the addresses are joined by commas in URL-safe base64, as the hash
// is, and the checksum is the CRC-32 (IEEE) of everything before it.
type Token struct {
	ID        string   // names the token's record
	Secret    string   // what only the holder knows
	Addresses []string // host:port of control nodes' agents
	CA        string   // CA.Hash: whom the joining node trusts
}

const (
	tokenPrefix = "drover-join-1"
	maxToken    = 4096
)

// NewToken makes a token with a secret of 160 random bits.
func NewToken(addresses []string, ca string) (Token, error) {
	t := Token{ID: randomHex(6), Secret: randomHex(20), Addresses: addresses, CA: ca}
	if _, err := ParseToken(t.String()); err != nil {
		return Token{}, err
	}
	return t, nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it cannot fail; see crypto/rand
	return hex.EncodeToString(b)
}

// String is the token as a user copies it.
func (t Token) String() string {
	addresses := base64.RawURLEncoding.EncodeToString([]byte(strings.Join(t.Addresses, ",")))
	s := strings.Join([]string{tokenPrefix, t.ID, t.Secret, addresses, t.CA}, ".")
	return s + "." + checksum(s)
}

func checksum(s string) string { return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(s))) }

// ParseToken reads a token. Whatever it accepts, String prints as it was.
func ParseToken(s string) (Token, error) {
	bad := func(why string) (Token, error) {
		return Token{}, &api.Error{Kind: api.Invalid, Op: "read join token", Reason: why, Next: "copy the whole token, or make one with drover node token on a node of the cluster"}
	}
	if len(s) > maxToken {
		return bad("it is too long")
	}
	parts := strings.Split(s, ".")
	if parts[0] != tokenPrefix {
		if strings.HasPrefix(parts[0], "drover-join-") {
			return bad("it is of another version of Drover: " + strconv.Quote(parts[0]))
		}
		return bad("it does not begin with " + tokenPrefix)
	}
	if len(parts) != 6 {
		return bad(fmt.Sprintf("it has %d parts instead of 6; some of it is missing", len(parts)))
	}
	body, sum := s[:strings.LastIndexByte(s, '.')], parts[5]
	if sum != checksum(body) {
		return bad("its checksum is wrong; it was not copied in full")
	}
	t := Token{ID: parts[1], Secret: parts[2], CA: parts[4]}
	if !isHex(t.ID, 12) || !isHex(t.Secret, 40) {
		return bad("its id or secret is malformed")
	}
	hash, err := base64.RawURLEncoding.Strict().DecodeString(t.CA)
	if err != nil || len(hash) != sha256.Size {
		return bad("its CA hash is malformed")
	}
	addresses, err := base64.RawURLEncoding.Strict().DecodeString(parts[3])
	if err != nil {
		return bad("its addresses are malformed")
	}
	t.Addresses = strings.Split(string(addresses), ",")
	for _, a := range t.Addresses {
		if err := CheckAddress(a); err != nil {
			return bad("its addresses are malformed")
		}
	}
	if t.String() != s {
		return bad("it is malformed")
	}
	return t, nil
}

func isHex(s string, n int) bool {
	if len(s) != n || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// CheckAddress allows host:port with an IP address or host name that others
// can dial.
func CheckAddress(a string) error {
	bad := func(why string) error {
		return &api.Error{Kind: api.Invalid, Op: "use address", Object: strconv.Quote(a), Reason: why, Next: "give host:port with an address that the other nodes can reach"}
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return bad("it is not host:port")
	}
	if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 || strconv.FormatUint(p, 10) != port {
		return bad("its port is not a number from 1 to 65535")
	}
	if ip := net.ParseIP(host); ip != nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return bad("nobody can dial it")
		}
		if net.JoinHostPort(host, port) != a {
			return bad("it is not host:port")
		}
		return nil
	}
	if err := api.CheckNodeName(strings.ToLower(host)); err != nil || len(a) > 255 {
		return bad("its host is neither an IP address nor a name")
	}
	return nil
}

// SecretHash is what the store keeps of a token's secret. The secret is
// random and long, so a plain hash does not give it away.
func SecretHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// SecretMatches compares in constant time.
func SecretMatches(secret, hash string) bool {
	return subtle.ConstantTimeCompare([]byte(SecretHash(secret)), []byte(hash)) == 1
}
