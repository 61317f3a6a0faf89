package repo

// Layer is one layer of a commit in a remote, as far as merging goes.
type Layer struct {
	Level int   // 0 for what one push added; a merged layer has one more than what it was made of
	Bytes int64 // of packs that only it brought
}

// Numbers of the merging of layers.
const (
	// Fan is how many layers of one level become one of the next.
	Fan = 8
	// Base is the level of a layer that holds a whole tree.
	Base = 100
)

// Merge says how many of the newest layers become one, given all layers of a
// commit, the oldest first, and the level of the one they become; 0 for none.
// It keeps their number at Fan for each power of Fan of pushes. When what
// came after the whole tree weighs more than it, everything is merged anew, so
// that what is dead does not pile up.
func Merge(layers []Layer) (n, level int) {
	if len(layers) < 2 {
		return 0, 0
	}
	var above int64
	for _, l := range layers[1:] {
		above += l.Bytes
	}
	if layers[0].Level == Base && len(layers) > Fan && above > layers[0].Bytes {
		return len(layers), Base
	}
	n = 0
	level = layers[len(layers)-1].Level
	for i := len(layers) - 1; i >= 0 && layers[i].Level <= level; i-- {
		if layers[i].Level == level {
			n++
		}
	}
	// A level that is full becomes one of the next, which may be full then too.
	taken := 0
	for n >= Fan && level < Base-1 {
		taken, n = len(layers)-first(layers, level), 1
		level++
		for i := len(layers) - taken - 1; i >= 0 && layers[i].Level == level; i-- {
			n++
		}
	}
	if taken == 0 {
		return 0, 0
	}
	return taken, level
}

// first is the index of the oldest layer of the newest run of a level or below.
func first(layers []Layer, level int) int {
	i := len(layers)
	for i > 0 && layers[i-1].Level <= level {
		i--
	}
	return i
}
