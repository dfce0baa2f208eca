/* SPDX-License-Identifier: Apache-2.0 */
/* RunQueue: see the Python class in userspace/run_queue.py. */
#include <stdlib.h>

#include "queue.h"

/* How many tasks pop_near() looks at. */
#define SEARCH 32

PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct queue *queue = (struct queue *)allocate(type, 0);

	if (queue)
		queue->ends.before = queue->ends.after = &queue->ends;
	return (PyObject *)queue;
}

/* The place of task in queue; NULL if there is none. *link is what points to it among the task's places. */
static struct place *find(struct queue *queue, struct task *task, struct place ***link)
{
	for (*link = &task->places; **link; *link = &(**link)->next) {
		if ((**link)->queue == queue)
			return **link;
	}
	return NULL;
}

static void unlink_place(struct place *place)
{
	place->before->after = place->after;
	place->after->before = place->before;
}

void place_link(struct place *place, struct place *before)
{
	place->before = before;
	place->after = before->after;
	place->before->after = place->after->before = place;
}

struct place *place_new(struct queue *queue, struct task *task, size_t size)
{
	struct place *place = calloc(1, size);

	if (!place) {
		PyErr_NoMemory();
		return NULL;
	}
	place->task = (struct task *)Py_NewRef((PyObject *)task);
	place->queue = queue;
	place->next = task->places;
	task->places = place;
	queue->length++;
	return place;
}

bool queue_discard(struct queue *queue, struct task *task)
{
	struct place **link, *place = find(queue, task, &link);
	PyObject *rank = NULL;

	if (!place)
		return false;
	*link = place->next;
	unlink_place(place);
	if (queue->has_ranks)
		rank = ranked_remove(place);
	free(place);
	queue->length--;
	/* These may run code of the policy. */
	Py_DECREF(task);
	Py_XDECREF(rank);
	return true;
}

struct task *checked_task(PyObject *object)
{
	if (PyObject_TypeCheck(object, task_type))
		return (struct task *)object;
	PyErr_SetString(PyExc_TypeError, "not a Task");
	return NULL;
}

static PyObject *insert(struct queue *queue, PyObject *object, bool is_first)
{
	struct task *task = checked_task(object);
	struct place **link, *place;

	if (!task)
		return NULL;
	place = find(queue, task, &link);
	if (place)
		unlink_place(place);
	else
		place = place_new(queue, task, sizeof(*place));
	if (!place)
		return NULL;
	place_link(place, is_first ? &queue->ends : queue->ends.before);
	Py_RETURN_NONE;
}

bool queue_add(struct queue *queue, struct task *task)
{
	PyObject *result = insert(queue, (PyObject *)task, task->boosted);

	Py_XDECREF(result);
	return result;
}

static PyObject *queue_add_method(PyObject *self, PyObject *object)
{
	struct task *task = checked_task(object);

	return task ? insert((struct queue *)self, object, task->boosted) : NULL;
}

static PyObject *queue_add_if_allowed(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	struct task *task = count == 3 ? checked_task(args[2]) : NULL;
	long cpu = task ? PyLong_AsLong(args[0]) : -1;

	if (count != 3)
		PyErr_SetString(PyExc_TypeError, "add_if_allowed() takes a CPU, a function, and a task");
	if (PyErr_Occurred())
		return NULL;
	if (task_may_run(task, cpu))
		return insert((struct queue *)self, args[2], task->boosted);
	return PyObject_CallFunctionObjArgs(args[1], args[2], NULL);
}

static PyObject *queue_add_first(PyObject *self, PyObject *object)
{
	return insert((struct queue *)self, object, true);
}

PyObject *queue_discard_method(PyObject *self, PyObject *object)
{
	struct task *task = checked_task(object);

	if (!task)
		return NULL;
	queue_discard((struct queue *)self, task);
	Py_RETURN_NONE;
}

PyObject *queue_tasks(struct queue *queue)
{
	PyObject *list = PyList_New(0);

	for (struct place *at = queue->ends.after; list && at != &queue->ends; at = at->after) {
		if (PyList_Append(list, (PyObject *)at->task) < 0)
			Py_CLEAR(list);
	}
	return list;
}

static PyObject *queue_discard_if(PyObject *self, PyObject *condition)
{
	PyObject *tasks = queue_tasks((struct queue *)self);

	if (!tasks)
		return NULL;
	for (Py_ssize_t n = 0, count = PyList_Size(tasks); n < count; n++) {
		PyObject *task = PyList_GetItem(tasks, n);
		PyObject *result = PyObject_CallFunctionObjArgs(condition, task, NULL);
		int is_met = result ? PyObject_IsTrue(result) : -1;

		Py_XDECREF(result);
		if (is_met < 0) {
			Py_DECREF(tasks);
			return NULL;
		}
		if (is_met)
			queue_discard((struct queue *)self, (struct task *)task);
	}
	Py_DECREF(tasks);
	Py_RETURN_NONE;
}

/* Whether a task that last ran on cpu ran nearby. A task that never ran did not. */
static int is_near(PyObject *near, s32 cpu)
{
	return cpu < 0 ? 0 : has_bit(near, cpu);
}

struct task *queue_first(struct queue *queue, long cpu, PyObject *near)
{
	struct task *best = NULL;
	int count = 0;

	for (struct place *at = queue->ends.after; at != &queue->ends; at = at->after, count++) {
		struct task *task = at->task;
		int may, best_is_near;

		if (!task_may_run(task, cpu))
			continue;
		if (!near || task->boosted || task->cpu == cpu) {
			best = task;
			break;
		}
		if (count >= SEARCH) {
			best = best ? best : task;
			break;
		}
		if (!best) {
			best = task;
			continue;
		}
		best_is_near = is_near(near, best->cpu);
		may = best_is_near ? 0 : is_near(near, task->cpu);
		if (best_is_near < 0 || may < 0)
			return NULL;
		if (may)
			best = task;
	}
	return (struct task *)Py_XNewRef((PyObject *)best);
}

struct task *queue_pop(struct queue *queue, long cpu, PyObject *near)
{
	struct task *task = queue_first(queue, cpu, near);

	if (task)
		queue_discard(queue, task);
	return task;
}

static PyObject *popped(PyObject *self, PyObject *cpu, PyObject *near)
{
	long id = PyLong_AsLong(cpu);
	struct task *task;

	if (id == -1 && PyErr_Occurred())
		return NULL;
	task = queue_pop((struct queue *)self, id, near);
	if (task || PyErr_Occurred())
		return (PyObject *)task;
	Py_RETURN_NONE;
}

PyObject *queue_pop_method(PyObject *self, PyObject *cpu)
{
	return popped(self, cpu, NULL);
}

static PyObject *queue_pop_near(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	if (count != 2) {
		PyErr_SetString(PyExc_TypeError, "pop_near() takes a CPU and a mask of CPUs");
		return NULL;
	}
	return popped(self, args[0], args[1]);
}

/* Where in the list of CPUs cpu is, if task may run on it; -1 if not, or with an exception. */
static Py_ssize_t find_cpu(PyObject *cpus, long cpu, struct task *task)
{
	for (Py_ssize_t n = 0, count = PyList_Size(cpus); n < count; n++) {
		if (PyLong_AsLong(PyList_GetItem(cpus, n)) == cpu)
			return task_may_run(task, cpu) ? n : -1;
	}
	return -1;
}

/* Which of cpus is for task: where it last ran, else a sibling, else the first; -1 if there is none, or with an exception. */
static Py_ssize_t nearest(PyObject *cpus, PyObject *siblings, struct task *task)
{
	PyObject *last = PyLong_FromLong(task->cpu), *near = last ? PyDict_GetItemWithError(siblings, last) : NULL;
	Py_ssize_t at = find_cpu(cpus, task->cpu, task);

	Py_XDECREF(last);
	for (Py_ssize_t n = 0, count = near ? PyTuple_Size(near) : 0; at < 0 && n < count; n++)
		at = find_cpu(cpus, PyLong_AsLong(PyTuple_GetItem(near, n)), task);
	for (Py_ssize_t n = 0, count = PyList_Size(cpus); at < 0 && n < count; n++) {
		if (task_may_run(task, PyLong_AsLong(PyList_GetItem(cpus, n))))
			at = n;
	}
	return PyErr_Occurred() ? -1 : at;
}

PyObject *queue_match(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	struct queue *queue = (struct queue *)self;
	PyObject *matched;

	if (count != 2 || !PyList_Check(args[0]) || !PyDict_Check(args[1])) {
		PyErr_SetString(PyExc_TypeError, "match() takes a list of CPUs, and a dict of their siblings");
		return NULL;
	}
	matched = PyList_New(0);
	for (struct place *at = queue->ends.after, *next; matched && at != &queue->ends && PyList_Size(args[0]); at = next) {
		Py_ssize_t n = nearest(args[0], args[1], at->task);
		PyObject *pair;

		next = at->after;
		if (n < 0 && !PyErr_Occurred())
			continue;
		pair = n < 0 ? NULL : PyTuple_Pack(2, (PyObject *)at->task, PyList_GetItem(args[0], n));
		if (!pair || PyList_Append(matched, pair) < 0 || PyList_SetSlice(args[0], n, n + 1, NULL) < 0)
			Py_CLEAR(matched);
		else
			queue_discard(queue, at->task);
		Py_XDECREF(pair);
	}
	return matched;
}

/* Iterates over a queue: the next task is the one after `last`, or the first. */
struct tasks {
	PyObject_HEAD
	struct queue *queue;
	struct task *last;
};

static PyTypeObject *tasks_type;

static PyObject *queue_iter(PyObject *self)
{
	struct tasks *tasks = PyObject_GC_New(struct tasks, tasks_type);

	if (!tasks)
		return NULL;
	tasks->queue = (struct queue *)Py_NewRef(self);
	tasks->last = NULL;
	PyObject_GC_Track(tasks);
	return (PyObject *)tasks;
}

static PyObject *tasks_next(PyObject *self)
{
	struct tasks *tasks = (struct tasks *)self;
	struct place **link, *place = tasks->last ? find(tasks->queue, tasks->last, &link) : &tasks->queue->ends;
	PyObject *before = (PyObject *)tasks->last;

	if (!place) {
		PyErr_SetString(PyExc_RuntimeError, "the queue was changed during the iteration");
		return NULL;
	}
	if (place->after == &tasks->queue->ends)
		return NULL;
	tasks->last = (struct task *)Py_NewRef((PyObject *)place->after->task);
	Py_XDECREF(before);
	return Py_NewRef((PyObject *)tasks->last);
}

static int tasks_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(((struct tasks *)self)->queue);
	Py_VISIT(((struct tasks *)self)->last);
	return 0;
}

static void tasks_dealloc(PyObject *self)
{
	struct tasks *tasks = (struct tasks *)self;
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	Py_DECREF((PyObject *)tasks->queue);
	Py_XDECREF((PyObject *)tasks->last);
	PyObject_GC_Del(self);
	Py_DECREF(type);
}

static PyTypeObject *make_tasks_type(void)
{
	static PyType_Slot slots[] = {
		{Py_tp_dealloc, tasks_dealloc}, {Py_tp_traverse, tasks_traverse}, {Py_tp_iter, PyObject_SelfIter},
		{Py_tp_iternext, tasks_next},	{0},
	};
	static PyType_Spec spec = {
		.name = "ghostbpf.schedulers.agents._native.Tasks",
		.basicsize = sizeof(struct tasks),
		.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
		.slots = slots,
	};

	return (PyTypeObject *)PyType_FromSpec(&spec);
}

Py_ssize_t queue_length(PyObject *self)
{
	return ((struct queue *)self)->length;
}

int queue_contains(PyObject *self, PyObject *object)
{
	struct place **link;

	return PyObject_TypeCheck(object, task_type) && find((struct queue *)self, (struct task *)object, &link);
}

static int queue_traverse(PyObject *self, visitproc visit, void *arg)
{
	struct queue *queue = (struct queue *)self;

	Py_VISIT(Py_TYPE(self));
	for (struct place *at = queue->ends.after; at && at != &queue->ends; at = at->after)
		Py_VISIT(at->task);
	return 0;
}

int queue_clear(PyObject *self)
{
	struct queue *queue = (struct queue *)self;

	while (queue->length)
		queue_discard(queue, queue->ends.after->task);
	return 0;
}

void queue_dealloc(PyObject *self)
{
	PyObject_GC_UnTrack(self);
	queue_clear(self);
	free_object(self);
}

PyTypeObject *make_queue_type(void)
{
	static PyMethodDef methods[] = {
		{"add", queue_add_method, METH_O, NULL},
		{"add_if_allowed", (PyCFunction)(void (*)(void))queue_add_if_allowed, METH_FASTCALL, NULL},
		{"add_first", queue_add_first, METH_O, NULL},
		{"discard", queue_discard_method, METH_O, NULL},
		{"discard_if", queue_discard_if, METH_O, NULL},
		{"pop", queue_pop_method, METH_O, NULL},
		{"match", (PyCFunction)(void (*)(void))queue_match, METH_FASTCALL, NULL},
		{"pop_near", (PyCFunction)(void (*)(void))queue_pop_near, METH_FASTCALL, NULL},
		{NULL},
	};
	static PyType_Slot slots[] = {
		{Py_tp_new, queue_new},
		{Py_tp_dealloc, queue_dealloc},
		{Py_tp_traverse, queue_traverse},
		{Py_tp_clear, queue_clear},
		{Py_tp_iter, queue_iter},
		{Py_sq_length, queue_length},
		{Py_sq_contains, queue_contains},
		{Py_tp_methods, methods},
		{0},
	};
	static PyType_Spec spec = {
		.name = "ghostbpf.schedulers.agents._native.RunQueue",
		.basicsize = sizeof(struct queue),
		.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
		.slots = slots,
	};

	tasks_type = make_tasks_type();
	return tasks_type ? (PyTypeObject *)PyType_FromSpec(&spec) : NULL;
}
