package repo

import "testing"

// TestMergeKeepsFew: the number of layers grows with the logarithm of the
// pushes, and what is written anew with it.
func TestMergeKeepsFew(t *testing.T) {
	layers := []Layer{{Base, 1 << 40}}
	var written, most int64
	for push := 1; push <= 5000; push++ {
		layers = append(layers, Layer{0, 1})
		written++
		if n, level := Merge(layers); n > 0 {
			if n >= len(layers) {
				t.Fatalf("push %d: the whole tree is merged: %v", push, layers)
			}
			var sum int64
			for _, l := range layers[len(layers)-n:] {
				sum += l.Bytes
				if l.Level >= level {
					t.Fatalf("push %d: a layer of level %d is merged to level %d", push, l.Level, level)
				}
			}
			written += sum
			layers = append(layers[:len(layers)-n], Layer{level, sum})
		}
		most = max(most, int64(len(layers)))
		for i := 1; i < len(layers); i++ {
			if layers[i].Level > layers[i-1].Level {
				t.Fatalf("push %d: levels are not in order: %v", push, layers)
			}
		}
	}
	if most > 1+5*(Fan-1) { // 5000 < 8^5
		t.Errorf("%d layers at most", most)
	}
	if written > 5*5000 {
		t.Errorf("%d written for 5000 pushes", written)
	}
}

func TestMergeAllWhenMuchIsDead(t *testing.T) {
	layers := []Layer{{Base, 100}}
	for range Fan {
		layers = append(layers, Layer{0, 20})
	}
	if n, level := Merge(layers); n != len(layers) || level != Base {
		t.Errorf("got %d to level %d", n, level)
	}
	if n, _ := Merge(layers[:3]); n != 0 {
		t.Errorf("%d merged though there are few", n)
	}
	if n, _ := Merge(nil); n != 0 {
		t.Error("nothing merged to something")
	}
}
