"""How much of the full gradients' scores an encoding keeps, against its bytes and its speed: what `trackstar tune` measures."""
