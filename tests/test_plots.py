"`plots`: each figure from its defaults, on a new axis and on one that is given"
import matplotlib.pyplot as plt, numpy as np, pytest
from fastai_clr import plots
from fastai_clr.plots import (plot_confusion, plot_cycles, plot_grid, plot_group_lrs, plot_losses, plot_lr_find, plot_lr_range, plot_lr_suggestions,
    plot_metric_by_step, plot_scores, plot_values)

calls = dict(plot_values=[[.1,.2,.3]], plot_lr_find=[[1e-3,1e-2,.1], [3,2,1]], plot_losses=[[3,2,1]],
    plot_metric_by_step=[['head','all'], [.8,.9]], plot_confusion=[[[5,1],[0,3]], ['cat','dog']],
    plot_cycles=[[3,2,1,2,1,0], [0,3,6]], plot_scores=[[3,2,1]], plot_lr_range=[[.1,.2,.3], [3,2,1], [.1,.3], [.5,.9]],
    plot_lr_suggestions=[[.1,.2,.3], [3,2,1], dict(valley=.2)], plot_group_lrs=[[([.1,.2],[2,1])], [.1]], plot_grid=[[.1,.2], [.5,.9], [0,0]])

def test_all_are_called(): assert set(calls)==set(plots.__all__)

@pytest.mark.parametrize('name', calls)
def test_axis(name):
    f = getattr(plots, name)
    new = f(*calls[name])
    assert isinstance(new, plt.Axes)
    ax = plt.subplots()[1]
    n = len(plt.get_fignums())
    assert f(*calls[name], ax=ax) is ax and len(plt.get_fignums())==n
    assert ax.get_xlabel()==new.get_xlabel()!=''

def test_plot_values_units():
    ax = plot_values([1.,2,3,4], n_iter=2, bounds=[0,2,4], name='mom')
    assert ax.lines[0].get_xdata()==pytest.approx([0,.5,1,1.5]) and ax.lines[0].get_ydata()==pytest.approx([1,2,3,4])
    assert [o.get_xdata()[0] for o in ax.lines[1:]]==[0,1,2]
    assert (ax.get_xlabel(),ax.get_ylabel())==('epoch','mom')
    assert plot_values([1.,2]).get_xlabel()=='batch'

@pytest.mark.parametrize('n,labels', [(1,[]), (3,['group 0','group 1','group 2'])])
def test_plot_values_groups(n, labels):
    ax = plot_values(np.ones((5,n)))
    assert len(ax.lines)==n
    assert [o.get_text() for o in (ax.get_legend().get_texts() if ax.get_legend() else [])]==labels

def test_plot_lr_find():
    ax = plot_lr_find([1e-3,1e-2], [2,1], lr=5e-3)
    assert ax.get_xscale()=='log' and ax.lines[1].get_xdata()[0]==5e-3 and ax.get_legend().get_texts()[0].get_text()=='0.005'
    assert len(plot_lr_find([1e-3,1e-2], [2,1]).lines)==1

def test_plot_losses():
    assert len(plot_losses([3,2,1]).lines)==1
    ax = plot_losses([3,2,1,0], [2.5,.5], [2,4])
    assert ax.lines[1].get_xdata()==pytest.approx([2,4]) and ax.lines[1].get_ydata()==pytest.approx([2.5,.5])

def test_plot_metric_by_step():
    ax = plot_metric_by_step(['head','all'], [.8,.9], name='accuracy')
    assert [o.get_text() for o in ax.get_xticklabels()]==['head','all'] and [o.get_text() for o in ax.texts]==['0.800','0.900']
    assert ax.get_ylabel()=='accuracy'

def test_plot_confusion():
    ax = plot_confusion(np.array([[3,1],[0,0]]), ['cat','dog'])
    assert np.asarray(ax.images[0].get_array()).tolist()==[[.75,.25],[0,0]], 'a class without pictures is no division by zero'
    assert sorted(o.get_text() for o in ax.texts)==['1','3']
    assert not plot_confusion(np.eye(31), [str(i) for i in range(31)]).texts, 'numbers would not be readable'

def test_plot_cycles():
    "All from the same start to the same end, each with all its batches"
    losses = np.arange(7.)
    ax = plot_cycles(losses, [0,1,3,7])
    assert [list(o.get_ydata()) for o in ax.lines]==[[0],[1,2],[3,4,5,6]]
    assert [list(o.get_xdata()) for o in ax.lines]==[[1],[.5,1],[.25,.5,.75,1]]
    assert [o.get_text() for o in ax.get_legend().get_texts()]==['cycle 0, 1 batches','cycle 1, 2 batches','cycle 2, 4 batches']
    assert plot_cycles(np.arange(22.), range(0, 23, 2)).get_legend() is None
    assert len(plot_cycles(losses[:5], [0,3,7]).lines[1].get_ydata())==2, 'the last cycle may be unfinished'

def test_plot_scores():
    "Each at the earliest snapshot that it uses"
    ax = plot_scores([5,4,3], [3,2,1], [3,2.5], name='error_rate')
    assert [list(o.get_ydata()) for o in ax.lines]==[[5,4,3],[1,2,3],[2.5,3]]
    assert [list(o.get_xdata()) for o in ax.lines]==[[0,1,2],[0,1,2],[1,2]] and ax.get_ylabel()=='error_rate'

def labels(ax): return [o.get_text() for o in ax.get_legend().get_texts()] if ax.get_legend() else []

def test_plot_lr_range():
    "The bounds are shaded, with a hatch for black and white; without bounds nothing is"
    ax = plot_lr_range([.1,.2,.3], [3,2,1], [.1,.3], [.5,.9], (.15,.25), 'accuracy')
    band, = ax.patches
    assert band.get_x()==pytest.approx(.15) and band.get_width()==pytest.approx(.1) and band.get_hatch()=='//'
    assert labels(ax)==['training loss','accuracy','0.15 to 0.25'] and ax.get_xscale()=='linear' and ax.get_ylabel()=='accuracy'
    assert list(ax.lines[0].get_ydata())==[.5,.9]
    other, = [o for o in ax.figure.axes if o is not ax]
    assert list(other.lines[0].get_ydata())==[3,2,1] and other.get_ylabel()=='training loss' and other.lines[0].get_linestyle()!=ax.lines[0].get_linestyle()
    for bounds in None,(None,None): assert not plot_lr_range([.1,.2], [2,1], [.1], [.5], bounds, log=True).patches
    assert plot_lr_range([], [], [], []).get_xlabel()=='learning rate'

def test_plot_lr_suggestions():
    "Of many seeds the median and a band; rules that say nothing have no line"
    losses = np.array([[3,2,1,5],[4,3,2,np.nan],[5,4,3,np.nan]])
    ax = plot_lr_suggestions([.1,.2,.3,.4], losses, dict(valley=.2, slide=np.nan, steep=.1))
    assert list(ax.lines[0].get_ydata())==[4,3,2] and labels(ax)==['valley 0.2','steep 0.1']
    assert len(ax.collections)==1 and len({o.get_linestyle() for o in ax.lines[1:]})==2
    one = plot_lr_suggestions([.1,.2], [2,1], {})
    assert not one.collections and labels(one)==[]
    assert not plot_lr_suggestions([.1,.2], [[np.nan]*2], dict(valley=np.nan)).lines

def test_plot_group_lrs():
    ax = plot_group_lrs([([.1,.2,.4], [3,2,1]), ([.1,.2], [3,1])], [.2,np.nan], ['body','head'])
    assert labels(ax)==['body: 0.2','head'] and [len(o.get_xdata()) for o in ax.lines]==[3,1,2]
    assert ax.lines[1].get_xydata().tolist()==[[.2,2.]] and ax.lines[0].get_linestyle()!=ax.lines[2].get_linestyle()

def test_plot_grid():
    "A line a weight decay, through means; a dot a head; those that diverged are left out"
    ax = plot_grid([.1,.1,.2,.1,.2], [.5,.7,.8,.4,np.nan], [0,0,0,.1,.1], 'accuracy')
    assert [o.get_xydata().tolist() for o in ax.lines[::2]]==[[[.1,.6],[.2,.8]],[[.1,.4]]] and [len(o.get_xdata()) for o in ax.lines[1::2]]==[3,1]
    assert labels(ax)==['wd 0','wd 0.1'] and ax.get_xscale()=='log' and ax.get_ylabel()=='accuracy'

def test_confusion_is_read_the_right_way():
    ax = plot_confusion(np.array([[3,1],[0,2]]), ['cat','dog'])
    assert (ax.get_xlabel(),ax.get_ylabel())==('predicted','true') and {o.get_text(): o.get_position() for o in ax.texts}=={'3': (0,0), '1': (1,0), '2': (1,1)}
    assert [o.get_text() for o in ax.get_xticklabels()]==[o.get_text() for o in ax.get_yticklabels()]==['cat','dog']

def test_epochs_are_marked():
    ax = plot_values(np.ones(80), n_iter=2)
    ax.figure.canvas.draw()
    assert [o for o in ax.xaxis.get_minor_ticks() if 0<=o.get_loc()<40] and all(o.get_visible() for o in ax.get_xgridlines())
