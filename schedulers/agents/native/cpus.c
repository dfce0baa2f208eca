/* SPDX-License-Identifier: Apache-2.0 */
/* CpuFlags: see the Python class in agents/cpus.py. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdlib.h>

#include "native.h"

/* Make `numbers`, a tuple, the CPUs of the lists. On failure, with an exception, they stay as they are. */
static bool set_ids(struct cpus *cpus, PyObject *numbers)
{
	Py_ssize_t count = PyTuple_Size(numbers);
	s32 *ids = malloc(sizeof(*ids) * (count ? count : 1));

	if (!ids) {
		PyErr_NoMemory();
		return false;
	}
	for (Py_ssize_t n = 0; n < count; n++) {
		long id = PyLong_AsLong(PyTuple_GetItem(numbers, n));

		if (id < 0 || id >= cpus->running.length || id >= 64 * cpus->online.length) {
			if (!PyErr_Occurred())
				PyErr_SetString(PyExc_IndexError, "no such CPU");
			free(ids);
			return false;
		}
		ids[n] = id;
	}
	free(cpus->ids);
	cpus->ids = ids;
	cpus->count = count;
	return true;
}

static int cpus_init(PyObject *self, PyObject *args, PyObject *keywords)
{
	struct cpus *cpus = (struct cpus *)self;
	PyObject *ids, *running, *latched, *preempted, *spinner, *online;

	if (!PyArg_ParseTuple(args, "O!OOOOO", &PyTuple_Type, &ids, &running, &latched, &preempted, &spinner, &online))
		return -1;
	if (cpus->running.first) {
		PyErr_SetString(PyExc_TypeError, "initialised already");
		return -1;
	}
	if (!column_open(&cpus->running, running, 4) || !column_open(&cpus->latched, latched, 8) ||
	    !column_open(&cpus->preempted, preempted, 4) || !column_open(&cpus->spinner, spinner, 8) ||
	    !column_open(&cpus->online, online, 8))
		return -1;
	return set_ids(cpus, ids) ? 0 : -1;
}

static void cpus_dealloc(PyObject *self)
{
	struct cpus *cpus = (struct cpus *)self;

	column_close(&cpus->running);
	column_close(&cpus->latched);
	column_close(&cpus->preempted);
	column_close(&cpus->spinner);
	column_close(&cpus->online);
	free(cpus->ids);
	free_object(self);
}

static bool is_online(struct cpus *cpus, s32 cpu)
{
	return *column_u64(&cpus->online, cpu / 64) >> cpu % 64 & 1;
}

static bool is_held(struct cpus *cpus, s32 cpu)
{
	return *column_u32(&cpus->preempted, cpu);
}

struct walk walk_of(struct cpus *cpus, enum which which)
{
	struct walk walk = {.cpus = cpus, .which = which, .own = sched_getcpu(), .at = -1};

	return walk;
}

static bool matches(const struct walk *walk, s32 cpu)
{
	struct cpus *cpus = walk->cpus;
	s32 spun = (s32)(*column_u64(&cpus->spinner, 0) >> 32) - 1;

	return !*column_u64(&cpus->latched, cpu) && cpu != spun && is_online(cpus, cpu) &&
	       (*column_u32(&cpus->running, cpu) != 0) == (walk->which == BUSY);
}

static bool has_own(const struct walk *walk)
{
	for (Py_ssize_t n = 0; n < walk->cpus->count; n++)
		if (walk->cpus->ids[n] == walk->own)
			return is_held(walk->cpus, walk->own);
	return false;
}

s32 walk_next(struct walk *walk)
{
	if (walk->at < 0) {
		walk->at = 0;
		if (has_own(walk) && matches(walk, walk->own))
			return walk->own;
	}
	while (walk->at < walk->cpus->count) {
		s32 cpu = walk->cpus->ids[walk->at++];

		if (!is_held(walk->cpus, cpu) && matches(walk, cpu))
			return cpu;
	}
	return -1;
}

static bool append(struct cpus *cpus, PyObject *list, enum which which)
{
	struct walk walk = walk_of(cpus, which);

	for (s32 cpu; (cpu = walk_next(&walk)) >= 0;) {
		PyObject *number = PyLong_FromLong(cpu);
		int failed;

		failed = number ? PyList_Append(list, number) : -1;
		Py_XDECREF(number);
		if (failed)
			return false;
	}
	return true;
}

static PyObject *listed(PyObject *self, const enum which *which, int count)
{
	PyObject *list = PyList_New(0);

	for (int n = 0; list && n < count; n++) {
		if (!append((struct cpus *)self, list, which[n]))
			Py_CLEAR(list);
	}
	return list;
}

static PyObject *cpus_open(PyObject *self, PyObject *unused)
{
	const enum which both[] = {IDLE, BUSY};

	return listed(self, both, 2);
}

static PyObject *cpus_idle(PyObject *self, PyObject *unused)
{
	const enum which idle = IDLE;

	return listed(self, &idle, 1);
}

static PyObject *cpus_busy(PyObject *self, PyObject *unused)
{
	const enum which busy = BUSY;

	return listed(self, &busy, 1);
}

static PyObject *cpus_is_online(PyObject *self, PyObject *cpu)
{
	struct cpus *cpus = (struct cpus *)self;
	long id = PyLong_AsLong(cpu);

	if (id == -1 && PyErr_Occurred())
		return NULL;
	if (id < 0 || id >= 64 * cpus->online.length) {
		PyErr_SetString(PyExc_IndexError, "no such CPU");
		return NULL;
	}
	return PyBool_FromLong(is_online(cpus, id));
}

static PyObject *cpus_set(PyObject *self, PyObject *numbers)
{
	if (!PyTuple_Check(numbers)) {
		PyErr_SetString(PyExc_TypeError, "set() takes a tuple");
		return NULL;
	}
	return set_ids((struct cpus *)self, numbers) ? Py_NewRef(Py_None) : NULL;
}

PyTypeObject *make_cpus_type(void)
{
	static PyMethodDef methods[] = {
		{"open", cpus_open, METH_NOARGS, NULL},
		{"idle", cpus_idle, METH_NOARGS, NULL},
		{"busy", cpus_busy, METH_NOARGS, NULL},
		{"is_online", cpus_is_online, METH_O, NULL},
		{"set", cpus_set, METH_O, NULL},
		{NULL},
	};
	static PyType_Slot slots[] = {
		{Py_tp_new, PyType_GenericNew},
		{Py_tp_init, cpus_init},
		{Py_tp_dealloc, cpus_dealloc},
		{Py_tp_methods, methods},
		{0},
	};
	static PyType_Spec spec = {
		.name = "ghostbpf.schedulers.agents._native.CpuFlags",
		.basicsize = sizeof(struct cpus),
		.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
		.slots = slots,
	};

	return (PyTypeObject *)PyType_FromSpec(&spec);
}
