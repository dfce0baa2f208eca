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
	replace(&task->refused, PyLong_FromLong(0));
	return task->refused ? 0 : -1;
}

static void task_dealloc(PyObject *object)
{
	/* A queue holds its tasks: none has this one. */
	Py_CLEAR(((struct task *)object)->refused);
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

int task_may_run(struct task *task, long cpu)
{
	int refused;

	if (cpu >= 0 && cpu < 64)
		return task->allowed >> cpu & 1;
	if (cpu < 0) {
		PyErr_SetString(PyExc_ValueError, "negative shift count");
		return -1;
	}
	refused = has_bit(task->refused, cpu);
	return refused < 0 ? -1 : !refused;
}

static PyObject *task_may_run_on(PyObject *object, PyObject *cpu)
{
	long id = PyLong_AsLong(cpu);
	int may;

	if (id == -1 && PyErr_Occurred())
		return NULL;
	may = task_may_run((struct task *)object, id);
	return may < 0 ? NULL : PyBool_FromLong(may);
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
		MEMBER(allowed, T_ULONGLONG),
		MEMBER(seq, T_UINT),
		MEMBER(word, T_UINT),
		MEMBER(tid, T_UINT),
		MEMBER(state, T_INT),
		MEMBER(cpu, T_INT),
		MEMBER(next_cpu, T_INT),
		MEMBER(tgid, T_INT),
		MEMBER(weight, T_INT),
		MEMBER(boosted, T_BOOL),
		MEMBER(refused, T_OBJECT),
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
