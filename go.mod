module github.com/drover-data/drover

go 1.26
