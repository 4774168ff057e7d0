"""Every setting there is, each with what it means; the other configs change values, never add keys.

What is allowed for a key is said in resnet_jax/settings.py.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Returns the paper's CIFAR recipe (section 4.2) on the embedded digits."""
    c = ConfigDict()

    c.seed = 0  # replicate r has seed + r: its own initialisation, data order and augmentation
    c.replicates = 1  # seeds trained side by side in one run folder
    # How seeds that share a device are computed. It changes no result but for rounding, so you may
    # change it when you resume a run, and no seed ever changes another.
    # auto: by the devices, the images and the steps, see resnet_jax/parallel/seeds.py
    # separate: all together, but convolutions and products seed by seed | unroll: one after
    # another, compiled for each | loop: likewise, compiled once (over ten times slower on CPU)
    c.replicates_by = "auto"
    # Whether training on a GPU is deterministic, bit for bit. With False some gradients are summed
    # in any order: a step of ResNet-20 in float32 takes half as long, but the same run ends
    # differently each time, and so does a resumed one. CPUs and TPUs are always deterministic.
    c.deterministic = True
    c.batch_size = 128  # examples a step, over all devices
    c.accumulate = 1  # parts that a batch is computed in, one after another, to save memory
    # The length of training: exactly one of the three.
    c.steps = config_dict.placeholder(int)
    c.epochs = config_dict.placeholder(float)
    c.examples = config_dict.placeholder(int)

    m = c.model = ConfigDict()
    m.family = "cifar"  # imagenet: depths 18, 34, 50, 101, 152 | cifar: depths 6n+2
    m.depth = 20  # weighted layers, as the paper counts them
    # none (the plain net) | A identity, zero-padded | B projection where the shape changes | C
    # projection everywhere
    m.shortcut = "A"
    m.bottleneck_stride = "v1"  # v1: on the first 1x1 (the paper) | v1.5: on the 3x3
    m.activation = "post"  # post: after the addition (2015) | pre: before each convolution (2016)
    m.stem = "cifar"  # cifar: 3x3 | imagenet: 7x7, stride 2, then a 3x3 max pool of stride 2
    # The imagenet stem as a 4x4 convolution of 2x2 pixels side by side: the same function, whose
    # twelve input channels suit matrix units better than three
    m.space_to_depth = False
    m.width = 1.0  # factor on the filters of every layer
    # Each block starts as its shortcut: its last BatchNorm scale (post) or last kernel (pre) is 0
    m.zero_init_residual = False
    m.dtype = "float32"  # float32 | bfloat16: of activations; parameters, statistics, loss: float32
    # How float32 numbers are multiplied: highest: as float32 (the paper) | high: TensorFloat-32 on
    # GPU, three bfloat16 products on TPU | default: the fastest: TensorFloat-32 on GPU, one of
    # bfloat16 on TPU. On CPU all three are float32
    m.precision = "highest"
    # Blocks of a stage that are alike run in a loop, so that compiling takes as long at any depth:
    # on | off | auto: not on CPU, where convolutions in a loop are over ten times slower
    m.scan = "auto"
    # Stages, (1, 2) say, whose blocks are computed again in the backward pass, which saves memory
    # (on CPU only where scan is on)
    m.remat = ()
    m.num_classes = 0  # 0: as many as the data set has
    m.bn_group = 0  # examples over which BatchNorm takes its statistics; 0: the whole batch
    m.bn_momentum = 0.9  # share that the moving averages keep at each step
    m.bn_epsilon = 1e-5  # added to the variance

    # Steps that are one program, so that the device does not wait for the host between them: a
    # divisor of log.every, eval.every and checkpoint.every | auto: 1 on CPU and of a streamed set,
    # otherwise as many as are allowed, up to 32. It changes no result but for rounding
    c.train = ConfigDict()
    c.train.steps_per_dispatch = "auto"

    d = c.data = ConfigDict()
    d.name = "digits"  # digits | cifar10 | cifar100 | mnist | fashion_mnist | svhn_cropped; these
    # live on the devices whole. imagenet2012 is streamed from full-size pictures
    # The TFDS data_dir; empty: the environment's TFDS_DATA_DIR, then ~/tensorflow_datasets
    d.dir = ""
    d.validation = 180  # examples held out of the training split, by `split_seed`
    d.split_seed = 0  # the same for every seed, so that all runs of a study are validated alike
    d.mean = "pixel"  # subtracted, from the training split: pixel (H x W x C; not of a streamed
    # set) | channel (C) | none
    d.std = True  # divide by the training split's standard deviation of each channel
    d.pad = 0  # random crops from images padded by this many zero pixels a side; 0: no crops
    # Random horizontal flips: on | off | auto: where a mirrored image keeps its class
    d.flip = "auto"
    d.color = False  # shifts along the principal axes of colour (Krizhevsky et al. 2012)
    d.image_size = 0  # pixels a side, as the network sees them; 0: the set's own (224 of ImageNet)
    # Of a streamed set:
    d.crop = "scale"  # what a training step sees of a picture: scale: the paper's, the short side
    # resized to one of `scales` | random_resized: a box of random `area` and `aspect`, resized
    d.scales = (256, 480)  # scale: shortest and longest
    d.area = (0.08, 1.0)  # random_resized: smallest and largest share of the picture
    d.aspect = (0.75, 4 / 3)  # random_resized: smallest and largest width / height
    # How pictures are resized: bilinear (the paper) | bicubic | area: without aliasing, and slower
    d.resample = "bilinear"
    d.workers = 0  # threads that decode pictures in each process; 0: one a core

    o = c.optimizer = ConfigDict()
    # sgd: with momentum, as the paper | adam: decay in the gradient | adamw: decoupled | lars: sgd
    # whose rate follows each kernel's norm, for batches of thousands (You 2017)
    o.name = "sgd"
    o.momentum = 0.9  # sgd, lars
    o.nesterov = False  # sgd, lars
    o.trust = 0.001  # lars: the rate of a kernel is multiplied by trust * |weights| / |gradient|
    o.b1 = 0.9  # adam, adamw
    o.b2 = 0.999  # adam, adamw
    o.epsilon = 1e-8  # adam, adamw
    o.weight_decay = 1e-4
    o.decay_on = "all"  # all: every parameter (the paper) | kernels: not BatchNorm's and biases
    o.clip_norm = 0.0  # the gradient's global norm is cut to this; 0: never

    s = c.schedule = ConfigDict()
    s.name = "step"  # constant | step: times `factor` at each boundary | cosine | plateau
    s.rate = 0.1  # the learning rate after warm-up
    s.rate_for_batch = 0  # all rates are meant for a batch of this many examples, and grow in
    # proportion to batch_size (Goyal et al. 2017); 0: they are meant for batch_size
    s.unit = "steps"  # of `boundaries` and `warmup_length`: steps | epochs | examples | fraction
    s.boundaries = (32000.0, 48000.0)  # step
    s.factor = 0.1  # step, plateau
    s.final_rate = 0.0  # cosine: the rate at the end
    s.patience = 5  # plateau: evaluations without a better validation error before the rate drops
    s.tolerance = 0.01  # plateau: percentage points of error that count as better
    s.warmup = "none"  # none | linear: from 0 over `warmup_length` | until_error: the paper's, a
    # constant `warmup_rate` until the training error falls below `warmup_error`
    s.warmup_length = 0.0  # linear
    s.warmup_rate = 0.01  # until_error
    s.warmup_error = 80.0  # until_error: percent
    s.warmup_window = 100  # until_error: steps over which the training error is averaged

    c.label_smoothing = 0.0  # probability mass spread evenly over all classes
    c.ema_decay = 0.0  # of an exponential average of the weights, which is then evaluated; 0: none

    e = c.eval = ConfigDict()
    e.every = 1000  # steps between evaluations on the validation split; the last step always is one
    # Examples evaluated at a time; it changes no result but for rounding. For a streamed set it
    # counts training crops: larger views share a batch with fewer others, so that its pixels are no
    # more than those of a training step
    e.batch_size = 512
    e.statistics = "population"  # of BatchNorm in the final test: population: exact averages over
    # training data, taken after training (the paper) | moving_average
    e.population_examples = 0  # training examples for the population statistics; 0: all of them
    e.weights = "last"  # tested at the end: last (the paper) | best: by validation error
    e.views = ("center",)  # what the final test sees of a picture of a streamed set, one or several
    # of: center | ten_crop | fully_convolutional; the first is what the run is reported by
    e.short_side = 256  # center, ten_crop: pixels that the short side is resized to
    e.scales = (224, 256, 384, 480, 640)  # fully_convolutional: the short sides averaged over

    # How devices share the work; it changes no result, so a run may go on with other values.
    c.mesh = ConfigDict()
    c.mesh.replicates = 0  # groups of devices that seeds are spread over; 0: as many as go
    c.mesh.fsdp = 1  # devices that share one copy of the parameters and the optimiser's state

    # Neither of the two below changes a result: a run may be resumed with other values.
    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps between checkpoints; the last step always has one
    c.checkpoint.keep = 2  # newest checkpoints kept; each holds the best weights so far too

    c.log = ConfigDict()
    c.log.every = 100  # steps between lines of metrics, each the mean over the steps since the last
    c.log.tensorboard = True

    # The first and the last of some steps that are traced, (101, 120) say; the run folder's
    # profile/ then says how busy the device was. The first steps of a run or launch compile.
    c.profile = ()
    return c
