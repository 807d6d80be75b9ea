"""Write a model as one GGUF file, as llama.cpp's own converter and quantiser would."""
