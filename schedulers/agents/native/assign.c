/* SPDX-License-Identifier: Apache-2.0 */
/* Pairs of tasks and CPUs, in the order of a queue. */
#include "queue.h"
#include "turns.h"

/* What assign() is called with; taken may be NULL. */
struct assignment {
	struct queue *queue, *taken;
	PyObject *slice_ns, *near;
};

/* The first task of the queue for cpu that still waits; NULL without an exception: none. */
static struct task *next_task(struct turns *turns, const struct assignment *from, PyObject *cpu)
{
	PyObject *mask = from->near == Py_None ? NULL : PyObject_GetItem(from->near, cpu);
	long id = PyLong_AsLong(cpu);
	struct task *task = NULL;

	if (PyErr_Occurred())
		goto out;
	while ((task = queue_pop(from->queue, id, mask))) {
		bool done = !from->taken || queue_add(from->taken, task);

		if (done && turns_waits(turns, task))
			break;
		Py_CLEAR(task);
		if (!done)
			break;
	}
out:
	Py_XDECREF(mask);
	return task;
}

/* Append Transaction(task, cpu, slice_ns). */
static bool append_transaction(struct turns *turns, PyObject *list, struct task *task, PyObject *cpu, PyObject *slice_ns)
{
	PyObject *fields[TXN_FIELDS] = {(PyObject *)task, cpu, slice_ns};
	PyObject *transaction = make_transaction((PyTypeObject *)turns->transaction, fields);
	int failed = transaction ? PyList_Append(list, transaction) : -1;

	Py_XDECREF(transaction);
	return !failed;
}

/* Give CPU `id` the first task of the queue; false with an exception. */
static bool assign_to(struct turns *turns, const struct assignment *from, s32 id, PyObject *list)
{
	PyObject *cpu = PyLong_FromLong(id);
	struct task *task = cpu ? next_task(turns, from, cpu) : NULL;
	bool done = !PyErr_Occurred() && (!task || append_transaction(turns, list, task, cpu, from->slice_ns));

	Py_XDECREF((PyObject *)task);
	Py_XDECREF(cpu);
	return done;
}

static bool is_queue(PyObject *object)
{
	return PyObject_TypeCheck(object, queue_type) || PyObject_TypeCheck(object, priority_queue_type);
}

PyObject *turns_assign(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	struct assignment from;
	enum which last;
	struct cpus *cpus;
	PyObject *list;

	if (count != 7 || !is_queue(args[0]) || !PyObject_TypeCheck(args[1], cpus_type) ||
	    (args[5] != Py_None && !PyObject_TypeCheck(args[5], queue_type))) {
		PyErr_SetString(
			PyExc_TypeError,
			"assign() takes a queue, CpuFlags, a bool, a slice, a mapping or None, a RunQueue or None, and a "
			"function or None");
		return NULL;
	}
	from = (struct assignment){
		.queue = (struct queue *)args[0],
		.taken = args[5] == Py_None ? NULL : (struct queue *)args[5],
		.slice_ns = args[3],
		.near = args[4],
	};
	cpus = (struct cpus *)args[1];
	last = PyObject_IsTrue(args[2]) ? BUSY : IDLE;
	list = PyList_New(0);
	for (enum which which = IDLE; which <= last; which++) {
		struct walk walk = walk_of(cpus, which);

		for (s32 cpu; list && from.queue->length && (cpu = walk_next(&walk)) >= 0;) {
			if (!assign_to((struct turns *)self, &from, cpu, list))
				Py_CLEAR(list);
		}
	}
	if (list && args[6] != Py_None && !PyList_Size(list) && from.queue->length && !call(args[6]))
		Py_CLEAR(list);
	return list;
}

/* The CPUs of a list of CpuFlags. */
static PyObject *list_of(struct cpus *cpus, enum which which)
{
	struct walk walk = walk_of(cpus, which);
	PyObject *list = PyList_New(0);

	for (s32 id; list && (id = walk_next(&walk)) >= 0;) {
		PyObject *cpu = PyLong_FromLong(id);

		if (!cpu || PyList_Append(list, cpu) < 0)
			Py_CLEAR(list);
		Py_XDECREF(cpu);
	}
	return list;
}

PyObject *turns_match(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	PyObject *list, *cpus, *pairs;

	if (count != 5 || !PyObject_TypeCheck(args[0], queue_type) || !PyObject_TypeCheck(args[1], cpus_type)) {
		PyErr_SetString(PyExc_TypeError, "match() takes a RunQueue, CpuFlags, a bool, a slice, and a dict");
		return NULL;
	}
	list = PyList_New(0);
	if (!list || !((struct queue *)args[0])->length)
		return list;
	cpus = list_of((struct cpus *)args[1], PyObject_IsTrue(args[2]) ? BUSY : IDLE);
	pairs = cpus ? queue_match(args[0], (PyObject *const[]){cpus, args[4]}, 2) : NULL;
	for (Py_ssize_t n = 0; list && pairs && n < PyList_Size(pairs); n++) {
		PyObject *pair = PyList_GetItem(pairs, n);
		struct task *task = (struct task *)PyTuple_GetItem(pair, 0);

		if (!append_transaction((struct turns *)self, list, task, PyTuple_GetItem(pair, 1), args[3]))
			Py_CLEAR(list);
	}
	if (!pairs)
		Py_CLEAR(list);
	Py_XDECREF(pairs);
	Py_XDECREF(cpus);
	return list;
}
