"On a GPU: mixed precision, channels last, sweeps that leave nothing behind, slices, snapshots, resuming, activations that stay there, and grids of heads"
import pytest, torch
from fastai.callback import schedule # Patches Learner; chkstyle: ignore
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.fp16 import MixedPrecision
from fastcore.basics import noop
from fastai_clr import fit, heads, lr_range, precompute # Patch Learner; chkstyle: ignore
from fastai_clr.data import picture_dls
from fastai_clr.resume import keep_state
from learners import same, weights
from pictures import small

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
MODES = {'float32': [], 'fp16': [MixedPrecision('fp16')], 'bf16': [MixedPrecision('bf16')]}

def make(digits, path, mode, last=False, seed=0):
    learn = small(picture_dls(digits, size=32, bs=20, flip=False, device='cuda'), path, seed, cbs=[type(o)(amp_mode=mode) for o in MODES[mode]]+[ChannelsLast()]*last)
    learn.logger = noop
    return learn

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('last', [False,True])
def test_sweeps_leave_nothing(digits, tmp_path, mode, last):
    learn = make(digits, tmp_path, mode, last)
    learn.unfreeze()
    learn.fit_sgdr(1, 1, slice(1e-4, 1e-3))
    was,opt,cuda = weights(learn),learn.opt.state_dict(),torch.cuda.get_rng_state()
    state = [{k: v.clone() for k,v in o.items() if isinstance(v, torch.Tensor)} for o in opt['state']]
    r = learn.lr_range_test(show_plot=False)
    g = learn.group_lr_find(show_plot=False, num_it=30)
    learn.lr_suggestions(2, show_plot=False)
    with keep_state(learn): learn.lr_find(show_plot=False)
    assert len(r.curve)>10 and len(g.lrs)==len(learn.opt.hypers)
    assert same(weights(learn), was) and torch.equal(torch.cuda.get_rng_state(), cuda) and not torch.is_autocast_enabled('cuda')
    for a,b in zip(learn.opt.state_dict()['state'], state): assert all(torch.equal(a[k], b[k]) for k in b)

@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('last', [False,True])
def test_cycles_by_slices(digits, tmp_path, mode, last):
    "Learns, keeps snapshots, and goes on where it was broken off"
    learn = make(digits, tmp_path, mode, last)
    learn.unfreeze()
    learn.fit_clr(1, .5, lr_max=slice(1e-3, 1e-2))
    learn.fit_sgdr(2, 2, slice(1e-3, 1e-2), 1, snapshots='s', resume='r')
    values = [o[0] for o in learn.recorder.values]
    assert next(learn.model.parameters()).is_cuda and values[-1]<values[0] and len(learn.snapshots('s'))==2
    probs,targs = learn.snapshot_preds('s')
    assert probs.shape==(40,10) and torch.allclose(probs.sum(1), torch.ones(40), atol=1e-4)
    again = make(digits, tmp_path, mode, last, 1)
    again.unfreeze()
    again.fit_clr(1, .5, lr_max=slice(1e-3, 1e-2))
    again.fit_sgdr(2, 2, slice(1e-3, 1e-2), 1, snapshots='s', resume='r')
    assert same(weights(again), weights(learn))   # all was done before

@pytest.mark.parametrize('where', ['gpu','ram','disk'])
@pytest.mark.parametrize('mode', MODES)
def test_the_head(digits, tmp_path, where, mode):
    "On stored activations it gives what the whole model gives, and a grid of heads leaves a better one"
    learn = make(digits, tmp_path, mode)
    head = learn.precompute(where=where)
    head.logger = noop
    assert head.dls.train.dataset.y.is_cuda==(where=='gpu')
    head.fit_sgdr(2, 1, 1e-2)
    assert head.validate()[0]==pytest.approx(learn.validate()[0], rel=.02)
    was = head.validate()[0]
    with pytest.warns(UserWarning, match='dropped in epoch 0'): board = head.fit_grid(6, lr=[1e-3,1e-2,1e30], ps=[0.,.25], seeds=2)
    assert board['loss'].isna().tolist()==[False]*8+[True]*4
    assert head.validate()[0]<was and head.validate()[0]==pytest.approx(learn.validate()[0], rel=.02)
