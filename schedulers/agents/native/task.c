/* SPDX-License-Identifier: Apache-2.0 */
/* Task: see the Python class in agents/task.py. */
#include <stddef.h>

#include "native.h"

static int task_init(PyObject *object, PyObject *args, PyObject *keywords)
{
	static char *names[] = {"gtid", NULL};
	struct task *task = (struct task *)object;
	unsigned long long gtid;

	if (!PyArg_ParseTupleAndKeywords(args, keywords, "K", names, &gtid))
		return -1;
	task->gtid = gtid;
	task->tid = (u32)gtid;
	task->cpu = task->next_cpu = -1;
	task->weight = 100;
	return 0;
}

static void task_dealloc(PyObject *object)
{
	/* A queue holds its tasks: none has this one. */
	free_object(object);
}

static PyObject *task_repr(PyObject *object)
{
	return PyUnicode_FromFormat("<task %u>", ((struct task *)object)->tid);
}

int has_bit(PyObject *mask, long cpu)
{
	PyObject *number, *shifted;
	unsigned long long bits;

	if (cpu >= 0 && cpu < 64)
		return PyLong_AsUnsignedLongLongMask(mask) >> cpu & 1;
	number = PyLong_FromLong(cpu);
	shifted = number ? PyNumber_Rshift(mask, number) : NULL;
	Py_XDECREF(number);
	if (!shifted)
		return -1;
	bits = PyLong_AsUnsignedLongLongMask(shifted);
	Py_DECREF(shifted);
	return bits & 1;
}

static PyObject *task_may_run_on(PyObject *object, PyObject *cpu)
{
	long id = PyLong_AsLong(cpu);

	if (id == -1 && PyErr_Occurred())
		return NULL;
	if (id < 0) {
		PyErr_SetString(PyExc_ValueError, "negative shift count");
		return NULL;
	}
	return PyBool_FromLong(task_may_run((struct task *)object, id));
}

/* `low` with the bits of `word` from bit `shift` on; it takes the reference to low, which may be NULL. */
static PyObject *with_word(PyObject *low, u64 word, long shift)
{
	PyObject *high = PyLong_FromUnsignedLongLong(word), *distance = PyLong_FromLong(shift), *shifted, *whole;

	shifted = low && high && distance ? PyNumber_Lshift(high, distance) : NULL;
	whole = shifted ? PyNumber_Or(low, shifted) : NULL;
	Py_XDECREF(low);
	Py_XDECREF(high);
	Py_XDECREF(distance);
	Py_XDECREF(shifted);
	return whole;
}

static PyObject *task_get_allowed(PyObject *object, void *unused)
{
	const u64 *allowed = ((struct task *)object)->allowed;
	PyObject *mask = PyLong_FromUnsignedLongLong(allowed[0]);

	for (int n = 1; mask && n < CPU_WORDS; n++) {
		if (allowed[n])
			mask = with_word(mask, allowed[n], 64 * n);
	}
	return mask;
}

static int task_set_allowed(PyObject *object, PyObject *mask, void *unused)
{
	u64 *allowed = ((struct task *)object)->allowed;
	PyObject *rest = mask && PyLong_Check(mask) ? Py_NewRef(mask) : NULL, *distance = PyLong_FromLong(64);
	int n;

	if (!rest)
		PyErr_SetString(PyExc_TypeError, "allowed is an int");
	for (n = 0; rest && distance && n < CPU_WORDS; n++) {
		PyObject *next = PyNumber_Rshift(rest, distance);

		allowed[n] = PyLong_AsUnsignedLongLongMask(rest);
		Py_DECREF(rest);
		rest = next;
	}
	Py_XDECREF(distance);
	Py_XDECREF(rest);
	return rest && distance ? 0 : -1;
}

static PyObject *task_leave_queues(PyObject *object, PyObject *unused)
{
	struct task *task = (struct task *)object;

	while (task->places)
		queue_discard(task->places->queue, task);
	Py_RETURN_NONE;
}

#define MEMBER(name, type) {#name, type, offsetof(struct task, name), 0, NULL}

PyTypeObject *make_task_type(void)
{
	static PyMemberDef members[] = {
		MEMBER(gtid, T_ULONGLONG),
		MEMBER(runtime_ns, T_ULONGLONG),
		MEMBER(since_ns, T_ULONGLONG),
		MEMBER(seq, T_UINT),
		MEMBER(word, T_UINT),
		MEMBER(tid, T_UINT),
		MEMBER(state, T_INT),
		MEMBER(cpu, T_INT),
		MEMBER(next_cpu, T_INT),
		MEMBER(tgid, T_INT),
		MEMBER(weight, T_INT),
		MEMBER(boosted, T_BOOL),
		{NULL},
	};
	static PyGetSetDef computed[] = {
		{"allowed", task_get_allowed, task_set_allowed, NULL, NULL},
		{NULL},
	};
	static PyMethodDef methods[] = {
		{"may_run_on", task_may_run_on, METH_O, NULL},
		{"leave_queues", task_leave_queues, METH_NOARGS, NULL},
		{NULL},
	};
	static PyType_Slot slots[] = {
		{Py_tp_new, PyType_GenericNew},
		{Py_tp_init, task_init},
		{Py_tp_dealloc, task_dealloc},
		{Py_tp_repr, task_repr},
		{Py_tp_members, members},
		{Py_tp_getset, computed},
		{Py_tp_methods, methods},
		{0},
	};
	static PyType_Spec spec = {
		.name = "ghostbpf.schedulers.agents._native.Task",
		.basicsize = sizeof(struct task),
		.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
		.slots = slots,
	};

	return (PyTypeObject *)PyType_FromSpec(&spec);
}
