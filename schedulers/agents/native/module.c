/* SPDX-License-Identifier: Apache-2.0 */
/* The extension module, and what its types share. */
#include "native.h"

PyTypeObject *task_type, *queue_type, *priority_queue_type, *cpus_type, *turns_type;

void free_object(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	release(self);
	Py_DECREF(type);
}

bool column_open(struct column *column, PyObject *view, Py_ssize_t size)
{
	if (PyObject_GetBuffer(view, &column->buffer, PyBUF_STRIDES | PyBUF_FORMAT) < 0)
		return false;
	if (column->buffer.ndim != 1 || column->buffer.itemsize != size) {
		PyBuffer_Release(&column->buffer);
		PyErr_Format(PyExc_TypeError, "not a column of integers of %zd bytes", size);
		return false;
	}
	column->first = column->buffer.buf;
	column->stride = column->buffer.strides[0];
	column->length = column->buffer.shape[0];
	return true;
}

void column_close(struct column *column)
{
	PyBuffer_Release(&column->buffer);
}

static PyMethodDef functions[] = {
	{"new_transaction", (PyCFunction)(void (*)(void))new_transaction, METH_FASTCALL | METH_KEYWORDS, NULL},
	{NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_native",
	.m_doc = "The native half of the agent runtime.",
	.m_size = -1,
	.m_methods = functions,
};

PyMODINIT_FUNC PyInit__native(void)
{
	PyObject *module = PyModule_Create(&definition);
	struct {
		const char *name;
		PyTypeObject **type;
		PyTypeObject *(*make)(void);
	} types[] = {
		{"Task", &task_type, make_task_type},
		{"RunQueue", &queue_type, make_queue_type},
		{"PriorityQueue", &priority_queue_type, make_priority_queue_type},
		{"CpuFlags", &cpus_type, make_cpus_type},
		{"Turns", &turns_type, make_turns_type},
	};

	if (!module || PyModule_AddIntConstant(module, "VERSION", NATIVE_VERSION) < 0)
		return NULL;
	for (size_t n = 0; n < COUNT(types); n++) {
		*types[n].type = types[n].make();
		if (!*types[n].type || PyModule_AddObjectRef(module, types[n].name, (PyObject *)*types[n].type) < 0)
			return NULL;
	}
	return module;
}
