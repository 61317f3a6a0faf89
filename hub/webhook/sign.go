// Package webhook sends what happened in a hub's repositories to where people want to
// hear of it, as the Standard Webhooks specification says
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
// It knows the letters that the database has ready, and neither who may add webhooks nor
// what the events mean.
package webhook

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/drover-data/drover/api"
	"github.com/drover-data/drover/hub"
)

// The headers of the specification.
const (
	HeaderID        = "Webhook-Id"        // the same each time one event is tried
	HeaderTimestamp = "Webhook-Timestamp" // of this try: seconds since 1970
	HeaderSignature = "Webhook-Signature" // "v1," and base64 of the HMAC
)

const (
	secretPrefix         = "whsec_"
	minSecret, maxSecret = 24, 64 // bytes
)

// NewSecret makes a secret.
func NewSecret() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return secretPrefix + base64.StdEncoding.EncodeToString(b)
}

// ParseSecret gives the key that a secret stands for.
func ParseSecret(secret string) ([]byte, error) {
	text, ok := strings.CutPrefix(secret, secretPrefix)
	key, err := base64.StdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(key) < minSecret || len(key) > maxSecret {
		return nil, &api.Error{Kind: api.Invalid, Op: "read webhook secret", Reason: "it is not " + secretPrefix + " and base64 of 24 to 64 bytes", Next: "leave it out, and one is made"}
	}
	return key, nil
}

// Sign gives the signature of a message: HMAC-SHA-256 over its id, the time of the try and
// its body.
func Sign(key []byte, id string, at time.Time, body []byte) string {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
	m.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
}

// Tolerance is how far a receiver lets the time of a message be from its own.
const Tolerance = 5 * time.Minute

// Verify checks a message as its receiver does: any of the signatures in the header, which
// are separated by spaces, may be the right one.
func Verify(key []byte, id, timestamp, signatures string, body []byte, now time.Time) error {
	bad := func(reason string) error {
		return &api.Error{Kind: api.Unauthenticated, Op: "check webhook", Object: id, Reason: reason}
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return bad("its timestamp cannot be read")
	}
	at := time.Unix(seconds, 0)
	if d := now.Sub(at); d > Tolerance || d < -Tolerance {
		return bad("its timestamp is too far from now")
	}
	want := []byte(Sign(key, id, at, body))
	for given := range strings.FieldsSeq(signatures) {
		if hmac.Equal([]byte(given), want) {
			return nil
		}
	}
	return bad("no signature of it is right")
}

// Message is what is sent: the specification's payload.
type Message struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      Data      `json:"data"`
}

// Data is what happened.
type Data struct {
	Event      int64             `json:"event,omitempty"` // its id in the activity log
	Repository string            `json:"repository"`
	User       string            `json:"user,omitempty"`
	Details    map[string]string `json:"details,omitempty"`
}

// idOf is the same each time an event is sent to a webhook.
func idOf(webhook, event int64) string {
	return "hub_" + strconv.FormatInt(webhook, 10) + "_" + strconv.FormatInt(event, 10)
}

func bodyOf(e hub.Event) ([]byte, error) {
	return json.Marshal(Message{e.Kind, e.Time, Data{e.ID, e.Repository, e.User, e.Details}})
}
