"""How each quantity can be computed: one file a quantity, one function a mode.

Functions here take a function of one pytree (see `gradlab.inputs.focus`) and the point; the public operators in
`gradlab.operators` check the call and then come here. (The package is not called `modes`: importing it would overwrite
the public function `gradlab.modes`.)
"""
