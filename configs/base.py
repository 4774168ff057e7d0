"""Every setting, its default and its meaning. The other configs change values, never add keys.

resnet_jax/settings.py has the values that each setting allows.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Returns the paper's CIFAR recipe (section 4.2) on the embedded digits."""
    c = ConfigDict()

    c.seed = 0  # replicate r has seed + r: its own initialisation, data order and augmentation
    c.replicates = 1  # seeds trained side by side in one run folder
    # How seeds that share a device are computed. This changes results only by rounding, so you may
    # change it when you resume a run. No seed ever affects another.
    # separate: one program for all seeds, with per-seed convolutions and matrix products
    # unroll: one seed after another, compiled once per seed
    # loop: one seed after another, compiled once (over ten times slower on CPU)
    # auto: chosen from platform, image size and number of steps, see resnet_jax/execution.py
    c.replicates_by = "auto"
    # Whether training on a GPU is deterministic, bit for bit. With False a step of ResNet-20 in
    # float32 takes half as long, but some gradients are summed in varying order, so a repeated or
    # resumed run ends slightly differently. CPUs and TPUs are always deterministic.
    c.deterministic = True
    c.batch_size = 128  # examples per step, over all devices
    c.accumulate = 1  # parts of a batch, computed one after another to save memory
    # The length of training: set exactly one of these three.
    c.steps = config_dict.placeholder(int)
    c.epochs = config_dict.placeholder(float)
    c.examples = config_dict.placeholder(int)
    # A name for a combination of settings, such as a cure of several, in reports and cells' names.
    # It has no effect on training.
    c.variant = ""

    m = c.model = ConfigDict()
    # imagenet: depths 18, 34, 50, 101, 152 | cifar: depths 6n+2 | cifar_bottleneck: depths 9n+2
    m.family = "cifar"
    m.depth = 20  # weighted layers, as the paper counts them
    # none: the plain net | A: identity, zero-padded | B: projections where the shape changes |
    # C: projections everywhere
    m.shortcut = "A"
    # How a shortcut halves height and width: stride: every second position (the paper) | mean: the
    # means of 2x2 positions (ResNet-D)
    m.shortcut_downsampling = "stride"
    # A block outputs shortcut_scale * shortcut + branch_scale * branch. 0 and 1 make a residual net
    # the plain net, bit for bit. Each number is taken as it is or multiplied, with L the number of
    # residual blocks in the network:
    # constant | 1/sqrt(L) | 1/L | learned: a parameter per block that starts at the number
    m.shortcut_scale = 1.0
    m.shortcut_scale_by = "constant"
    m.branch_scale = 1.0
    m.branch_scale_by = "constant"
    # The shortcut's share is learned from the block's input, with g between 0 and 1: none |
    # exclusive: (1 - g) * shortcut + g * branch | shortcut_only: (1 - g) * shortcut + branch
    m.gate = "none"
    m.gate_bias = 0.0  # the initial bias of g's convolution
    # The probability that a training step drops the last block's branch; 0 before the first block,
    # and linear between.
    m.stochastic_depth = 0.0
    m.dropout = 0.0  # probability of dropout before the branch's last convolution
    m.bottleneck_stride = "v1"  # v1: on the first 1x1 (the paper) | v1.5: on the 3x3
    m.activation = "post"  # post: after the addition (2015) | pre: before each convolution (2016)
    # cifar: 3x3 | imagenet: 7x7, stride 2, then a 3x3 max pool of stride 2 | deep: as imagenet, but
    # with three 3x3 instead of the 7x7; the first has stride 2, and two have half the filters
    m.stem = "cifar"
    # Computes the stem's convolution of stride 2 over 2x2 blocks of pixels: the imagenet stem's as
    # 4x4. The function is the same, but twelve channels suit matrix units better than three.
    m.space_to_depth = False
    m.width = 1.0  # factor on the filters of every layer
    # Bottlenecks only: a further factor on the filters of their first two convolutions, and groups
    # of the 3x3. ResNeXt 32x4d: 2 and 32; 64x4d: 4 and 64; 32x8d: 4 and 32. Wide-50-2: 2 and 1.
    m.bottleneck_width = 1.0
    m.groups = 1
    # Squeeze and excitation at the end of each branch, with a hidden layer of the channels divided
    # by this number. 0: none; 16: the paper's
    m.se_reduction = 0
    m.stem_filters = 0  # 0: as many as the first stage's 3x3 convolutions
    # Layers of stride 2 that pad as TensorFlow's "SAME": their windows on an even length start one
    # pixel later than the paper's and PyTorch's. Any of stem, pool (of the imagenet stem), blocks
    m.same_padding = ()
    # Each block starts as its shortcut: the scale of its last BatchNorm (post) or its last kernel
    # (pre) starts at 0.
    m.zero_init_residual = False
    # relu | leaky_relu: slope 0.01 | crelu: [relu(x), relu(-x)] | gelu | linear | tailored: a leaky
    # ReLU whose slope is solved for the depth, so that two orthogonal inputs end with the cosine
    # similarity `tailored_eta` in a plain net (leaky TAT)
    m.nonlinearity = "relu"
    m.tailored_eta = 0.9
    # batch | none: biases on the convolutions instead | group: over `norm_groups` groups of
    # channels | frozen: BatchNorm that keeps its initial statistics
    m.norm = "batch"
    m.norm_groups = 8
    m.weight_standardization = False  # every filter has mean 0 and the variance of `init`
    # he | orthogonal | delta_orthogonal | looks_linear (with crelu) | dirac | fixup (with no norm):
    # resnet_jax/networks/initializers.py
    m.init = "he"
    # float32 | bfloat16: the dtype of activations. Parameters, statistics and loss stay float32.
    m.dtype = "float32"
    # How float32 numbers are multiplied. On CPU all three are float32.
    # highest: float32 (the paper) | high: TensorFloat-32 on GPU, three bfloat16 products on TPU |
    # default: the fastest: TensorFloat-32 on GPU, one bfloat16 product on TPU
    m.precision = "highest"
    # Whether equal blocks of a stage run in a loop, so that compile time does not grow with depth:
    # on | off | auto: if a run of `steps` steps then ends sooner, although a loop copies what it
    # keeps (loops.py); never on CPU, where convolutions in a loop are over ten times slower
    m.scan = "auto"
    # Stages, such as (1, 2), whose activations are recomputed in the backward pass to save memory.
    # On CPU this saves memory only if `scan` is on.
    m.remat = ()
    m.num_classes = 0  # 0: the number of classes of the data set
    # These three act with the norm "batch"; the epsilon also with "group" and "frozen".
    m.bn_group = 0  # examples over which BatchNorm takes its statistics; 0: the whole batch
    m.bn_momentum = 0.9  # weight of the old value in BatchNorm's moving averages
    m.bn_epsilon = 1e-5  # added to the variance

    # Training steps per compiled program; several keep the device from waiting for the host. This
    # changes results only by rounding. A common divisor of log.every, eval.every and
    # checkpoint.every | auto: 1 on CPU and for streamed data, else the largest divisor up to 32
    c.train = ConfigDict()
    c.train.steps_per_dispatch = "auto"

    d = c.data = ConfigDict()
    # digits | cifar10 | cifar100 | mnist | fashion_mnist | svhn_cropped | arrays: your own, see
    # resnet_jax/data/arrays.py: held in device memory |
    # imagenet2012 | image_folder: your own pictures: streamed from full-size pictures
    d.name = "digits"
    # TFDS data_dir; empty: the variable TFDS_DATA_DIR, else ~/tensorflow_datasets. For "arrays" the
    # .npz file
    d.dir = ""
    d.validation = 180  # examples held out of the training split, chosen by `split_seed`
    d.classes = ()  # only examples of these labels, such as (3, 5), renumbered from 0; (): all
    d.split_seed = 0  # independent of `seed`, so all runs of a study share one validation split
    # Subtracted from each image, computed on the training split: pixel: the mean image (H x W x C;
    # not for streamed data) | channel: the mean of each channel (C) | none
    d.mean = "pixel"
    d.std = True  # divide by the standard deviation of each channel over the training split
    # Given instead of measured, as for a network that others trained: of pixels from 0 to 255, a
    # number per channel. (): measured, or the customary numbers of ImageNet
    d.channel_mean = ()  # with the mean "channel"
    d.channel_std = ()
    d.pad = 0  # random crops after padding each side with this many zero pixels; 0: no crops
    d.flip = "auto"  # random horizontal flips: on | off | auto: if a mirrored image keeps its class
    d.color = False  # shifts along the principal axes of colour (Krizhevsky et al. 2012)
    d.image_size = 0  # side in pixels of the network's input; 0: the data set's own (ImageNet: 224)
    # The rest has an effect only for streamed data.
    # Training crops: scale: the short side resized to a random length in `scales`, then a random
    # crop (the paper) | random_resized: a box of random `area` and `aspect`, then resized
    d.crop = "scale"
    d.scales = (256, 480)  # scale: shortest and longest short side, in pixels
    d.area = (0.08, 1.0)  # random_resized: smallest and largest fraction of the picture's area
    d.aspect = (0.75, 4 / 3)  # random_resized: smallest and largest width / height
    # How pictures are resized: bilinear (the paper) | bicubic | area: no aliasing, but slower
    d.resample = "bilinear"
    d.workers = 0  # decoding threads per process; 0: one per core

    o = c.optimizer = ConfigDict()
    # sgd: with momentum (the paper) | adam: decay added to the gradient | adamw: decoupled decay |
    # lars: sgd with a rate per kernel that follows its norm, for batches of thousands (You 2017)
    o.name = "sgd"
    o.momentum = 0.9  # sgd, lars
    o.nesterov = False  # sgd, lars
    o.trust = 0.001  # lars: a kernel's rate is multiplied by trust * |weights| / |gradient|
    o.b1 = 0.9  # adam, adamw
    o.b2 = 0.999  # adam, adamw
    o.epsilon = 1e-8  # adam, adamw
    o.weight_decay = 1e-4
    o.decay_on = "all"  # all: every parameter (the paper) | kernels: not BatchNorm's, no biases
    # Factors on the learning rate of the stem, each stage and the classifier, such as
    # (0, 0, 0.1, 0.1, 1) for three stages. 0 freezes a part with its norms' averages. (): 1 for all
    o.rate_factors = ()
    o.clip_norm = 0.0  # the gradient's global norm is clipped to this; 0: no clipping

    s = c.schedule = ConfigDict()
    s.name = "step"  # constant | step: multiplied by `factor` at each boundary | cosine | plateau
    s.rate = 0.1  # the learning rate after warm-up
    # The batch size that all rates are given for; they are scaled in proportion to batch_size
    # (Goyal et al. 2017). 0: no scaling
    s.rate_for_batch = 0
    s.unit = "steps"  # of `boundaries` and `warmup_length`: steps | epochs | examples | fraction
    s.boundaries = (32000.0, 48000.0)  # step
    s.factor = 0.1  # step, plateau
    s.final_rate = 0.0  # cosine: the rate at the end
    s.patience = 5  # plateau: evaluations without a lower validation error before the rate drops
    s.tolerance = 0.01  # plateau: smallest decrease in error that counts, in percentage points
    # none | linear: from 0 to `rate` over `warmup_length` | until_error: a constant `warmup_rate`
    # until the training error falls below `warmup_error` (the paper)
    s.warmup = "none"
    s.warmup_length = 0.0  # linear
    s.warmup_rate = 0.01  # until_error
    s.warmup_error = 80.0  # until_error: percent
    s.warmup_window = 100  # until_error: steps over which the training error is averaged

    # Where the weights before the first step come from.
    i = c.init = ConfigDict()
    # A run folder, or a file with weights that experiments.convert reads, of the same network.
    # Empty: drawn by model.init. With several seeds: from as many seeds, or all from one.
    i["from"] = ""
    i.head = "new"  # new: the classifier is drawn | kept: the source's, for the same classes
    # How pixels are normalised: new: as data.mean and data.std say | kept: as in the source, a run
    i.normalization = "new"

    c.label_smoothing = 0.0  # probability mass spread evenly over all classes
    c.ema_decay = 0.0  # of an exponential average of the weights, which is evaluated; 0: no average

    e = c.eval = ConfigDict()
    e.every = 1000  # steps between validations; the last step is always validated
    # Examples per evaluation batch; it changes results only by rounding. For streamed data it
    # counts training crops: batches of larger views are smaller, so that a batch never has more
    # pixels than a training step.
    e.batch_size = 512
    # BatchNorm statistics in the final test: population: exact averages over training data, taken
    # after training (the paper) | moving_average
    e.statistics = "population"
    e.population_examples = 0  # training examples for the population statistics; 0: all
    e.weights = "last"  # weights in the final test: last (the paper) | best: by validation error
    # Views of each picture in the final test of streamed data, one or more of: center | ten_crop |
    # fully_convolutional. Reports use the first.
    e.views = ("center",)
    e.short_side = 256  # center, ten_crop: the short side is resized to this many pixels
    e.scales = (224, 256, 384, 480, 640)  # fully_convolutional: the short sides averaged over

    # How devices share the work. Results do not depend on it: you may change it on resuming.
    c.mesh = ConfigDict()
    c.mesh.replicates = 0  # groups of devices over which seeds are spread; 0: as many as possible
    c.mesh.fsdp = 1  # devices that share one copy of the parameters and the optimiser state

    # Results do not depend on these two groups either.
    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps between checkpoints; the last step is always saved
    c.checkpoint.keep = 2  # newest checkpoints kept; each also holds the best weights so far

    c.log = ConfigDict()
    c.log.every = 100  # steps between logged rows; each row is a mean over the steps since the last
    c.log.tensorboard = True
    # Steps between rows of signals inside the network, see resnet_jax/networks/signals.py; 0: none
    c.log.signals = ConfigDict()
    c.log.signals.every = 0

    # First and last step to trace, such as (101, 120). The trace, and how busy the device was, go
    # to the run folder's profile/. Leave out the first steps of a launch: they include compiling.
    c.profile = ()
    return c
