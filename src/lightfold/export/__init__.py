"""What leaves the program: meshes, point clouds, cameras, volumes, and a page to turn them on.

method -> [views] what training cameras see of the field -> [density | fusion] samples on a sparse lattice
       -> [blocks] marching cubes -> [surface] floaters off, colours on -> [texture] -> [mesh] files
"""
