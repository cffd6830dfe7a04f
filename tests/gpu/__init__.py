"""What can be checked on a GPU alone; `make gpu` runs it there, and the suite the same code on the CPU, small."""
