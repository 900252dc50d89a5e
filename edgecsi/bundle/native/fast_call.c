/* One entry of a library as a Python callable: arrays that fit are passed on as they are, and everything else goes to
 * the slow way, which converts it or says what is wrong. ctypes and the same checks in Python take 1.5 to 4 us; networks
 * take as little as 2. Compiled by edgecsi.device.toolchain, used by edgecsi/bundle/call.py if it is there. */
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>
#include <stddef.h>

enum { MOST = 6 }; /* inputs and outputs together */

typedef struct {
  int type, rank;
  npy_intp shape[NPY_MAXDIMS], bytes;
} Tensor;

typedef struct {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  void (*function)(void); /* lives as long as `call`, which holds the library */
  PyObject *call;         /* edgecsi.bundle.call.Call */
  int inputs, outputs;
  Tensor tensors[MOST];
} Entry;

static int fits(PyObject *x, const Tensor *tensor, int flags) {
  if (!PyArray_CheckExact(x)) return 0;
  PyArrayObject *array = (PyArrayObject *)x;
  return PyArray_TYPE(array) == tensor->type && PyArray_NDIM(array) == tensor->rank &&
         PyArray_CompareLists(PyArray_DIMS(array), tensor->shape, tensor->rank) && PyArray_CHKFLAGS(array, flags) &&
         PyArray_ISNOTSWAPPED(array);
}

static int overlap(const void *a, npy_intp a_bytes, const void *b, npy_intp b_bytes) {
  return (const char *)a < (const char *)b + b_bytes && (const char *)b < (const char *)a + a_bytes;
}

static int invoke(void (*f)(void), void **p, int count) {
  switch (count) {
  case 2: return ((int (*)(void *, void *))f)(p[0], p[1]);
  case 3: return ((int (*)(void *, void *, void *))f)(p[0], p[1], p[2]);
  case 4: return ((int (*)(void *, void *, void *, void *))f)(p[0], p[1], p[2], p[3]);
  case 5: return ((int (*)(void *, void *, void *, void *, void *))f)(p[0], p[1], p[2], p[3], p[4]);
  default: return ((int (*)(void *, void *, void *, void *, void *, void *))f)(p[0], p[1], p[2], p[3], p[4], p[5]);
  }
}

static PyObject *slow_way(Entry *self, PyObject *inputs, PyObject *out) {
  return PyObject_CallMethod(self->call, "general", "OO", inputs, out);
}

/* (inputs: tuple, out: array or None), as Call.general */
static PyObject *entry_call(PyObject *object, PyObject *const *args, size_t given, PyObject *names) {
  Entry *self = (Entry *)object;
  if (PyVectorcall_NARGS(given) != 2 || names != NULL || !PyTuple_CheckExact(args[0])) {
    PyErr_SetString(PyExc_TypeError, "an entry takes a tuple of inputs, and out");
    return NULL;
  }
  PyObject *inputs = args[0], *out = args[1];
  void *pointers[MOST];
  if (PyTuple_GET_SIZE(inputs) != self->inputs) return slow_way(self, inputs, out);
  for (int i = 0; i < self->inputs; i++) {
    PyObject *x = PyTuple_GET_ITEM(inputs, i);
    if (!fits(x, &self->tensors[i], NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED)) return slow_way(self, inputs, out);
    pointers[i] = PyArray_DATA((PyArrayObject *)x);
  }
  PyObject *results[MOST];
  const Tensor *last = &self->tensors[self->inputs];
  if (out != Py_None) {
    if (self->outputs != 1 || !fits(out, last, NPY_ARRAY_CARRAY)) return slow_way(self, inputs, out);
    void *target = PyArray_DATA((PyArrayObject *)out);
    for (int i = 0; i < self->inputs; i++)
      if (overlap(pointers[i], self->tensors[i].bytes, target, last->bytes)) return slow_way(self, inputs, out);
    pointers[self->inputs] = target;
    results[0] = Py_NewRef(out);
  } else {
    for (int i = 0; i < self->outputs; i++) {
      results[i] = PyArray_SimpleNew(last[i].rank, last[i].shape, last[i].type);
      if (results[i] == NULL) {
        while (i--) Py_DECREF(results[i]);
        return NULL;
      }
      pointers[self->inputs + i] = PyArray_DATA((PyArrayObject *)results[i]);
    }
  }
  int code;
  Py_BEGIN_ALLOW_THREADS
  code = invoke(self->function, pointers, self->inputs + self->outputs);
  Py_END_ALLOW_THREADS
  if (code == 0 && self->outputs == 1) return results[0];
  PyObject *all = code == 0 ? PyTuple_New(self->outputs) : NULL;
  for (int i = 0; i < self->outputs; i++) {
    if (all != NULL) PyTuple_SET_ITEM(all, i, results[i]);
    else Py_DECREF(results[i]);
  }
  if (code != 0) {
    PyObject *said = PyObject_CallMethod(self->call, "failed", "i", code);
    Py_XDECREF(said);
    if (said != NULL) PyErr_Format(PyExc_SystemError, "code %d raised nothing", code);
  }
  return all;
}

static int entry_traverse(PyObject *object, visitproc visit, void *arg) {
  Py_VISIT(((Entry *)object)->call);
  return 0;
}

static int entry_clear(PyObject *object) {
  Py_CLEAR(((Entry *)object)->call);
  return 0;
}

static void entry_free(PyObject *object) {
  PyObject_GC_UnTrack(object);
  entry_clear(object);
  PyObject_GC_Del(object);
}

static PyTypeObject EntryType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "edgecsi.bundle.fast_call.Entry",
    .tp_basicsize = sizeof(Entry),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(Entry, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_traverse = entry_traverse,
    .tp_clear = entry_clear,
    .tp_dealloc = entry_free,
};

/* bind(call, address, inputs, outputs, ((type number, shape), ...)) -> Entry, or None if it has too many tensors */
static PyObject *bind(PyObject *module, PyObject *args) {
  PyObject *call, *tensors;
  unsigned long long address;
  int inputs, outputs;
  if (!PyArg_ParseTuple(args, "OKiiO!", &call, &address, &inputs, &outputs, &PyTuple_Type, &tensors)) return NULL;
  if (inputs < 1 || outputs < 1 || inputs > MOST || outputs > MOST - inputs) Py_RETURN_NONE;
  Entry *self = PyObject_GC_New(Entry, &EntryType);
  if (self == NULL) return NULL;
  self->vectorcall = entry_call;
  self->function = (void (*)(void))(uintptr_t)address;
  self->call = Py_NewRef(call);
  self->inputs = inputs;
  self->outputs = outputs;
  PyObject_GC_Track(self);
  for (int i = 0; i < inputs + outputs; i++) {
    Tensor *tensor = &self->tensors[i];
    PyObject *shape, *about = PyTuple_GetItem(tensors, i);
    if (about == NULL || !PyArg_ParseTuple(about, "iO!", &tensor->type, &PyTuple_Type, &shape)) goto wrong;
    tensor->rank = (int)PyTuple_GET_SIZE(shape);
    if (tensor->rank > NPY_MAXDIMS) goto wrong;
    PyArray_Descr *kind = PyArray_DescrFromType(tensor->type);
    if (kind == NULL) goto wrong;
    tensor->bytes = PyDataType_ELSIZE(kind);
    Py_DECREF(kind);
    for (int d = 0; d < tensor->rank; d++) {
      tensor->shape[d] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, d));
      if (tensor->shape[d] == -1 && PyErr_Occurred()) goto wrong;
      tensor->bytes *= tensor->shape[d];
    }
  }
  return (PyObject *)self;
wrong:
  Py_DECREF(self);
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "no tensor");
  return NULL;
}

static PyMethodDef methods[] = {{"bind", bind, METH_VARARGS, "An entry as a callable."}, {NULL}};
static struct PyModuleDef fast_call = {PyModuleDef_HEAD_INIT, "fast_call", NULL, -1, methods};

PyMODINIT_FUNC PyInit_fast_call(void) {
  import_array();
  if (PyType_Ready(&EntryType) < 0) return NULL;
  return PyModule_Create(&fast_call);
}
