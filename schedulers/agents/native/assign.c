/* SPDX-License-Identifier: Apache-2.0 */
/* Pairs of tasks and CPUs, first come, first served. */
#include "turns.h"

/* The first task of queue for cpu that still waits; NULL without an exception: none. */
static struct task *next_task(struct turns *turns, struct queue *queue, PyObject *cpu, PyObject *near)
{
	PyObject *mask = near == Py_None ? NULL : PyObject_GetItem(near, cpu);
	long id = PyLong_AsLong(cpu);
	struct task *task = NULL;

	if (PyErr_Occurred())
		goto out;
	while ((task = queue_pop(queue, id, mask))) {
		if (turns_waits(turns, task))
			break;
		Py_DECREF(task);
	}
out:
	Py_XDECREF(mask);
	return task;
}

/* Append Transaction(task, cpu, slice_ns). A tuple's own constructor makes it: that of the class is Python. */
static bool append_transaction(struct turns *turns, PyObject *list, struct task *task, PyObject *cpu, PyObject *slice_ns)
{
	static newfunc new_tuple;
	static PyObject *no_flags;
	PyObject *fields, *args, *transaction;
	int failed;

	if (!new_tuple) {
		new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
		no_flags = PyLong_FromLong(0);
	}
	fields = PyTuple_Pack(4, (PyObject *)task, cpu, slice_ns, no_flags);
	args = fields ? PyTuple_Pack(1, fields) : NULL;
	transaction = args ? new_tuple((PyTypeObject *)turns->transaction, args, NULL) : NULL;
	failed = transaction ? PyList_Append(list, transaction) : -1;
	Py_XDECREF(fields);
	Py_XDECREF(args);
	Py_XDECREF(transaction);
	return !failed;
}

/* Give CPU `id` the first task of queue; false with an exception. */
static bool assign_to(struct turns *turns, struct queue *queue, s32 id, PyObject *slice_ns, PyObject *near, PyObject *list)
{
	PyObject *cpu = PyLong_FromLong(id);
	struct task *task = cpu ? next_task(turns, queue, cpu, near) : NULL;
	bool done = !PyErr_Occurred() && (!task || append_transaction(turns, list, task, cpu, slice_ns));

	Py_XDECREF((PyObject *)task);
	Py_XDECREF(cpu);
	return done;
}

PyObject *turns_assign(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	enum which last;
	struct queue *queue;
	struct cpus *cpus;
	PyObject *list;

	if (count != 5 || !PyObject_TypeCheck(args[0], queue_type) || !PyObject_TypeCheck(args[1], cpus_type)) {
		PyErr_SetString(PyExc_TypeError, "assign() takes a RunQueue, CpuFlags, a bool, a slice, a mapping or None");
		return NULL;
	}
	queue = (struct queue *)args[0];
	cpus = (struct cpus *)args[1];
	last = PyObject_IsTrue(args[2]) ? BUSY : IDLE;
	list = PyList_New(0);
	for (enum which which = IDLE; which <= last; which++) {
		struct walk walk = walk_of(cpus, which);

		for (s32 cpu; list && queue->length && (cpu = walk_next(&walk)) >= 0;) {
			if (!assign_to((struct turns *)self, queue, cpu, args[3], args[4], list))
				Py_CLEAR(list);
		}
	}
	return list;
}
