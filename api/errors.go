package api

import (
	"errors"
	"strings"
)

// Kind classifies an error. The set is closed and stable on the wire: it
// crosses HTTP, the transfer protocol and the exit code of the command.
type Kind string

// The kinds. Each edge translates them once: package apiserver to a status
// code, cmd/drover to an exit code, plugin/docker to its Err text.
const (
	// Invalid: the request itself is wrong and will be wrong again.
	Invalid Kind = "invalid"
	// NotFound: it is known that the object does not exist.
	NotFound Kind = "not-found"
	// Exists: the name is taken.
	Exists Kind = "exists"
	// Conflict: the object changed meanwhile; read again and decide again.
	Conflict Kind = "conflict"
	// InUse: somebody uses the object; Reason names who and where.
	InUse Kind = "in-use"
	// Unknown: whether it exists, or how it is, cannot be known now. It is
	// never to be read as NotFound.
	Unknown Kind = "unknown"
	// Unavailable: a part that is needed does not answer; trying later helps.
	Unavailable Kind = "unavailable"
	// Exhausted: a pool, a quota or a limit is full.
	Exhausted Kind = "exhausted"
	// ReadOnly: the pool refuses writes.
	ReadOnly Kind = "read-only"
	// Denied: the caller is known and may not do this.
	Denied Kind = "denied"
	// Unauthenticated: the caller is not known.
	Unauthenticated Kind = "unauthenticated"
	// Unsupported: this pool, engine or version cannot do it.
	Unsupported Kind = "unsupported"
	// Damaged: data does not have the digest it should have.
	Damaged Kind = "damaged"
	// Canceled: the caller, or a user's cancel, ended it.
	Canceled Kind = "canceled"
	// Internal: a defect of Drover.
	Internal Kind = "internal"
)

// Kinds lists every kind, for tests and documentation.
var Kinds = []Kind{
	Invalid, NotFound, Exists, Conflict, InUse, Unknown, Unavailable, Exhausted,
	ReadOnly, Denied, Unauthenticated, Unsupported, Damaged, Canceled, Internal,
}

// Error is the one error type that reaches a user. It says what was tried, on
// which object, why it failed and what to do next. Packages wrap it with %w
// like any other error; the outermost edge prints it.
type Error struct {
	Kind   Kind   `json:"kind" doc:"class of the error, from a closed set"`
	Op     string `json:"op,omitempty" doc:"what was being done, as in \"move volume\""`
	Object string `json:"object,omitempty" doc:"what it was done to, as in \"pg\" or \"pool fast on host2\""`
	Reason string `json:"reason,omitempty" doc:"why it failed, a clause without a full stop"`
	Next   string `json:"next,omitempty" doc:"what the reader can do now"`
	Err    error  `json:"-"`
}

// Error prints "op object: reason: cause (next)", leaving out what is empty.
func (e *Error) Error() string {
	var b strings.Builder
	head := strings.TrimSpace(e.Op + " " + e.Object)
	b.WriteString(head)
	for _, part := range []string{e.Reason, causeText(e.Err)} {
		if part == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(part)
	}
	if b.Len() == 0 {
		b.WriteString(string(e.Kind))
	}
	if e.Next != "" {
		b.WriteString(" (")
		b.WriteString(e.Next)
		b.WriteString(")")
	}
	return b.String()
}

func causeText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf is the kind of the outermost *Error in err's chain, Internal for an
// error without one and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }
