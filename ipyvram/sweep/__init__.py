"""What batch size? A cell, a name in it and some sizes come in; a `Comparison` goes out.

`ranges` and `binding` read what was asked, `saved_state` and `isolation` keep trials apart, `trial` runs one, `fit` and
`search` decide from the figures alone, `engine` holds them together.
"""
