"What a user star-imports: `from fastai_clr.all import *`"
from fastai_clr.plots import *
from fastai_clr.schedules import *
from fastai_clr.cycles import *
from fastai_clr.snapshots import *
from fastai_clr.resume import *
from fastai_clr.fit import *
from fastai_clr.lr_range import *
from fastai_clr.activations import *
from fastai_clr.precompute import *
from fastai_clr.heads import *
from fastai_clr.data import *
from fastai_clr.recipe import *
from fastai_clr.report import *
