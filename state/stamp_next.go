//go:build drover_next

package state

import "encoding/json"

// stamp adds to every record, and to every object in it two levels down (the
// heads of a volume), a field that the version before does not know.
func stamp(value []byte) []byte { return stampTo(value, 2) }

func stampTo(value []byte, depth int) []byte {
	var m map[string]json.RawMessage
	if json.Unmarshal(value, &m) != nil || m == nil {
		return value
	}
	if depth > 0 {
		heads := map[string]json.RawMessage{}
		if json.Unmarshal(m["heads"], &heads) == nil && len(heads) > 0 {
			for k, v := range heads {
				heads[k] = stampTo(v, 0)
			}
			m["heads"], _ = json.Marshal(heads)
		}
	}
	if m["next"] == nil {
		m["next"] = json.RawMessage(`{"of":"version 2"}`)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return value
	}
	return text
}
