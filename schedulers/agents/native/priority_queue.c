/* SPDX-License-Identifier: Apache-2.0 */
/* PriorityQueue: see the Python class in userspace/priority_queue.py. */
#include "queue.h"

/*
 * A place with a rank. The list of places is in the order of ranks; a treap over the same places finds where in the list
 * a rank belongs: a binary search tree in which each node has a random priority, and none a higher one than its parent.
 */
struct ranked {
	struct place place;
	PyObject *rank;
	struct ranked *parent, *children[2];
	struct ranked *older, *newer; /* by arrival at the rank */
	u32 priority;
};

struct priority_queue {
	struct queue queue;
	struct ranked *root, *oldest, *newest;
	u64 changes;
	u32 random;
};

static u32 next_random(struct priority_queue *queue)
{
	u32 x = queue->random;

	/* George Marsaglia's xorshift32 */
	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	return queue->random = x;
}

/* Put node, or NULL, into the tree in place of `old`. */
static void replace_node(struct priority_queue *queue, struct ranked *old, struct ranked *node)
{
	struct ranked *parent = old->parent;

	if (node)
		node->parent = parent;
	if (parent)
		parent->children[parent->children[1] == old] = node;
	else
		queue->root = node;
}

/* Exchange node and its child: the child becomes the parent. */
static void rotate(struct priority_queue *queue, struct ranked *node, int side)
{
	struct ranked *child = node->children[side], *between = child->children[!side];

	replace_node(queue, node, child);
	node->children[side] = between;
	if (between)
		between->parent = node;
	child->children[!side] = node;
	node->parent = child;
}

static void tree_insert(struct priority_queue *queue, struct ranked *node, struct ranked *parent, int side)
{
	node->parent = parent;
	if (parent)
		parent->children[side] = node;
	else
		queue->root = node;
	while (node->parent && node->parent->priority < node->priority)
		rotate(queue, node->parent, node->parent->children[1] == node);
}

static void tree_remove(struct priority_queue *queue, struct ranked *node)
{
	while (node->children[0] && node->children[1])
		rotate(queue, node, node->children[1]->priority > node->children[0]->priority);
	replace_node(queue, node, node->children[node->children[0] ? 0 : 1]);
}

static void add_newest(struct priority_queue *queue, struct ranked *node)
{
	node->older = queue->newest;
	*(node->older ? &node->older->newer : &queue->oldest) = node;
	queue->newest = node;
}

static void remove_from_ages(struct priority_queue *queue, struct ranked *node)
{
	*(node->older ? &node->older->newer : &queue->oldest) = node->newer;
	*(node->newer ? &node->newer->older : &queue->newest) = node->older;
}

PyObject *ranked_remove(struct place *place)
{
	struct priority_queue *queue = (struct priority_queue *)place->queue;
	struct ranked *node = (struct ranked *)place;

	tree_remove(queue, node);
	remove_from_ages(queue, node);
	queue->changes++;
	return node->rank;
}

/* Where rank belongs, after equal ones: below parent, on a side. False with an exception. */
static bool find_parent(struct priority_queue *queue, PyObject *rank, struct ranked **parent, int *side)
{
	u64 changes = queue->changes;

	*parent = NULL;
	*side = 0;
	for (struct ranked *node = queue->root; node; node = node->children[*side]) {
		PyObject *other = Py_NewRef(node->rank);
		int is_less = PyObject_RichCompareBool(rank, other, Py_LT);

		Py_DECREF(other);
		if (is_less < 0)
			return false;
		if (queue->changes != changes) {
			PyErr_SetString(PyExc_RuntimeError, "the queue was changed while ranks were compared");
			return false;
		}
		*parent = node;
		*side = !is_less;
	}
	return true;
}

static PyObject *put(PyObject *self, PyObject *object, PyObject *rank)
{
	struct priority_queue *queue = (struct priority_queue *)self;
	struct task *task = checked_task(object);
	struct ranked *node, *parent;
	int side;

	if (!task)
		return NULL;
	queue_discard(&queue->queue, task);
	if (!find_parent(queue, rank, &parent, &side))
		return NULL;
	node = (struct ranked *)place_new(&queue->queue, task, sizeof(*node));
	if (!node)
		return NULL;
	node->rank = Py_NewRef(rank);
	node->priority = next_random(queue);
	place_link(&node->place, !parent ? &queue->queue.ends : side ? &parent->place : parent->place.before);
	tree_insert(queue, node, parent, side);
	add_newest(queue, node);
	queue->changes++;
	Py_RETURN_NONE;
}

static PyObject *put_method(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	if (count == 2)
		return put(self, args[0], args[1]);
	PyErr_SetString(PyExc_TypeError, "put() takes a task and a rank");
	return NULL;
}

static PyObject *add(PyObject *self, PyObject *task)
{
	static PyObject *name;
	PyObject *rank, *result;

	if (!name)
		name = PyUnicode_InternFromString("rank");
	rank = PyObject_CallMethodObjArgs(self, name, task, NULL);
	result = rank ? put(self, task, rank) : NULL;
	Py_XDECREF(rank);
	return result;
}

static PyObject *rank_of(PyObject *self, PyObject *task)
{
	PyErr_SetNone(PyExc_NotImplementedError);
	return NULL;
}

static PyObject *head(PyObject *self, PyObject *unused)
{
	struct queue *queue = (struct queue *)self;
	struct ranked *first = (struct ranked *)queue->ends.after;

	if (!queue->length)
		Py_RETURN_NONE;
	return PyTuple_Pack(2, first->rank, (PyObject *)first->place.task);
}

static PyObject *oldest(PyObject *self, PyObject *unused)
{
	struct ranked *node = ((struct priority_queue *)self)->oldest;

	return Py_NewRef(node ? (PyObject *)node->place.task : Py_None);
}

static PyObject *first(PyObject *self, PyObject *cpu)
{
	long id = PyLong_AsLong(cpu);
	PyObject *task;

	if (id == -1 && PyErr_Occurred())
		return NULL;
	task = (PyObject *)queue_first((struct queue *)self, id, NULL);
	return task || PyErr_Occurred() ? task : Py_NewRef(Py_None);
}

static PyObject *iter(PyObject *self)
{
	PyObject *tasks = queue_tasks((struct queue *)self), *iterator = tasks ? PyObject_GetIter(tasks) : NULL;

	Py_XDECREF(tasks);
	return iterator;
}

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	struct priority_queue *queue = (struct priority_queue *)queue_new(type, args, keywords);

	if (queue) {
		queue->queue.has_ranks = true;
		queue->random = 1; /* any but 0 */
	}
	return (PyObject *)queue;
}

static int traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	for (struct ranked *node = ((struct priority_queue *)self)->oldest; node; node = node->newer) {
		Py_VISIT(node->place.task);
		Py_VISIT(node->rank);
	}
	return 0;
}

PyTypeObject *make_priority_queue_type(void)
{
	static PyMethodDef methods[] = {
		{"add", add, METH_O, NULL},
		{"put", (PyCFunction)(void (*)(void))put_method, METH_FASTCALL, NULL},
		{"rank", rank_of, METH_O, NULL},
		{"discard", queue_discard_method, METH_O, NULL},
		{"head", head, METH_NOARGS, NULL},
		{"oldest", oldest, METH_NOARGS, NULL},
		{"first", first, METH_O, NULL},
		{"pop", queue_pop_method, METH_O, NULL},
		{"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
		{NULL},
	};
	static PyType_Slot slots[] = {
		{Py_tp_new, new},
		{Py_tp_dealloc, queue_dealloc},
		{Py_tp_traverse, traverse},
		{Py_tp_clear, queue_clear},
		{Py_tp_iter, iter},
		{Py_sq_length, queue_length},
		{Py_sq_contains, queue_contains},
		{Py_tp_methods, methods},
		{0},
	};
	static PyType_Spec spec = {
		.name = "ghostbpf.schedulers.agents._native.PriorityQueue",
		.basicsize = sizeof(struct priority_queue),
		.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
		.slots = slots,
	};

	return (PyTypeObject *)PyType_FromSpec(&spec);
}
