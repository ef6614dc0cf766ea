"""The tour of gradients as a site of plain files: text, formulas, and code that runs when the site is built.

A page is a file of `pages/`, in Markdown with `$formulas$`; see `gradlab.tour.page` for what else it may hold.
"""

from gradlab.tour.site import PARTS as PARTS
from gradlab.tour.site import build as build
from gradlab.tour.site import rows as rows
