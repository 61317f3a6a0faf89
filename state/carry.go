package state

import (
	"bytes"
	"encoding"
	"encoding/json"
	"reflect"
	"strings"
)

// While a cluster is upgraded, nodes of two versions change the same records.
// The older one must not drop what the newer one wrote: fields that it does
// not know are carried over from the record that it read.

// carry gives next with the fields of old that values of type t do not have.
// What has an "id" of its own passes its fields on only to what has the same one.
func carry(old, next []byte, t reflect.Type) []byte {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if opaque(t) || t.Kind() != reflect.Struct && t.Kind() != reflect.Map {
		return next
	}
	var was, is map[string]json.RawMessage
	if json.Unmarshal(old, &was) != nil || json.Unmarshal(next, &is) != nil || was == nil || is == nil {
		return next // not an object, or not any more
	}
	if t.Kind() == reflect.Struct && !bytes.Equal(was["id"], is["id"]) {
		return next
	}
	changed := false
	for name, text := range was {
		now, there := is[name]
		if t.Kind() == reflect.Map {
			if there {
				changed = set(is, name, now, carry(text, now, t.Elem())) || changed
			}
			continue
		}
		field, known := fieldType(t, name)
		switch {
		case !known && !there:
			is[name], changed = text, true
		case known && there:
			changed = set(is, name, now, carry(text, now, field)) || changed
		}
	}
	if !changed {
		return next
	}
	text, err := json.Marshal(is)
	if err != nil {
		return next
	}
	return text
}

func set(m map[string]json.RawMessage, name string, old, text []byte) bool {
	m[name] = text
	return !bytes.Equal(old, text)
}

var (
	marshaler     = reflect.TypeFor[json.Marshaler]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
)

// opaque types say themselves what their JSON is.
func opaque(t reflect.Type) bool {
	return t.Implements(marshaler) || t.Implements(textMarshaler) || reflect.PointerTo(t).Implements(marshaler) || reflect.PointerTo(t).Implements(textMarshaler)
}

// fieldType gives the type of a struct's field by its name in JSON.
func fieldType(t reflect.Type, name string) (reflect.Type, bool) {
	for _, f := range reflect.VisibleFields(t) {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || tag == "-" || f.Anonymous && tag == "" {
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		if strings.EqualFold(tag, name) {
			return f.Type, true
		}
	}
	return nil, false
}
