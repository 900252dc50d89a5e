"""Networks: the zoo, one file each, the registry that names them, and loading of weights from anywhere."""
