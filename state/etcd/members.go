package etcd

const maxLearners = 4
