package storage

// Wrapper is a backend that stands before another one, to inject faults or to
// watch it. It may have the methods of every capability; which of them mean
// something is decided by what it wraps.
type Wrapper interface {
	Backend
	Wrapped() Backend
}

// As finds an optional capability of a backend: As[storage.Sizer](b). It is
// the only way to ask, because a wrapper has more methods than abilities.
func As[T any](b Backend) (T, bool) {
	c, ok := b.(T)
	if w, wraps := b.(Wrapper); ok && wraps {
		_, ok = As[T](w.Wrapped())
	}
	if !ok {
		var none T
		return none, false
	}
	return c, true
}
