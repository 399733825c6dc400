"""Does a GPU pass the library's own tests of kernels, gradients and plans, with both of its backends?"""

import inspect

import test_gradients
import test_kernels
import test_plan

for _module in (test_kernels, test_gradients, test_plan):
    for _name, _test in vars(_module).items():
        if _name.startswith("test_") and {"backend", "call"} & set(inspect.signature(_test).parameters):
            assert _name not in globals(), f"{_name} of {_module.__name__} is there already"
            globals()[_name] = _test
