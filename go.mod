module github.com/drover-data/drover

go 1.26

require pgregory.net/rapid v1.3.0 // indirect
