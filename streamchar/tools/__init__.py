"""Developer tools: the code generation gate, its SASS parser, and the roofline model."""
