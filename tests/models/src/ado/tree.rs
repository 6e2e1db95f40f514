//! A tree that only grows. It owns who descends from whom, and the one form that stands for every order in which the same tree may have grown.

use crate::explorer::draw::Branch;

/// A node's place in its tree. Places change with [`Tree::canonical`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(u32);

impl Node {
    /// The one that was there first.
    pub const ROOT: Self = Self(0);

    /// Its place as an index.
    #[must_use]
    pub const fn place(self) -> usize {
        self.0 as usize
    }
}

/// A tree of at least one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tree<T> {
    /// Parent and content. The root is its own parent.
    nodes: Vec<(Node, T)>,
}

impl<T> Tree<T> {
    /// A root.
    #[must_use]
    pub fn new(root: T) -> Self {
        Self { nodes: vec![(Node::ROOT, root)] }
    }

    /// How many nodes there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// What a node says.
    #[must_use]
    pub fn get(&self, node: Node) -> &T {
        &self.nodes[node.place()].1
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = (Node, &T)> {
        self.nodes.iter().enumerate().map(|(place, (_, content))| (Node(place as u32), content))
    }

    /// What a node hangs from.
    #[must_use]
    pub fn parent(&self, node: Node) -> Option<Node> {
        (node != Node::ROOT).then(|| self.nodes[node.place()].0)
    }

    /// A new child.
    pub fn add_leaf(&mut self, parent: Node, content: T) -> Node {
        self.nodes.push((parent, content));
        Node(self.nodes.len() as u32 - 1)
    }

    /// A new child to which all that were there before now belong.
    pub fn insert_below(&mut self, parent: Node, content: T) -> Node {
        let new = Node(self.nodes.len() as u32);
        let children = self.nodes.iter_mut().skip(1).filter(|(above, _)| *above == parent);
        children.for_each(|(above, _)| *above = new);
        self.nodes.push((parent, content));
        new
    }

    /// The nodes above one, the next first.
    pub fn above(&self, node: Node) -> impl Iterator<Item = Node> + '_ {
        std::iter::successors(self.parent(node), |node| self.parent(*node))
    }

    /// Whether `lower` descends from `upper`; nothing does from itself.
    #[must_use]
    pub fn is_above(&self, upper: Node, lower: Node) -> bool {
        self.above(lower).any(|node| node == upper)
    }

    /// From the root to a node, both with it.
    #[must_use]
    pub fn branch(&self, node: Node) -> Vec<Node> {
        let mut branch: Vec<_> = std::iter::once(node).chain(self.above(node)).collect();
        branch.reverse();
        branch
    }

    fn children(&self, node: Node) -> Vec<Node> {
        self.nodes().map(|(node, _)| node).filter(|child| self.parent(*child) == Some(node)).collect()
    }

    /// As a person would draw it.
    pub fn drawn(&self, node: Node, label: &impl Fn(Node, &T) -> String) -> Branch {
        let children = self.children(node).into_iter().map(|child| self.drawn(child, label)).collect();
        Branch { label: label(node, self.get(node)), children }
    }
}

impl<T: Ord + Clone> Tree<T> {
    /// The same tree with its nodes in the order of a walk that takes the lesser of two children first, and where each of the old ones is in it.
    #[must_use]
    pub fn canonical(&self) -> (Self, Vec<Node>) {
        let mut nodes = Vec::with_capacity(self.nodes.len());
        let mut places = vec![Node::ROOT; self.nodes.len()];
        self.walk(Node::ROOT, Node::ROOT, &mut nodes, &mut places);
        (Self { nodes }, places)
    }

    fn walk(&self, node: Node, parent: Node, nodes: &mut Vec<(Node, T)>, places: &mut [Node]) {
        let place = Node(nodes.len() as u32);
        nodes.push((parent, self.get(node).clone()));
        places[node.place()] = place;
        let mut children = self.children(node);
        if children.len() > 1 {
            children.sort_by_cached_key(|child| self.words(*child));
        }
        children.into_iter().for_each(|child| self.walk(child, place, nodes, places));
    }

    /// A subtree as words that two of them share only if they are the same.
    fn words(&self, node: Node) -> Words<T> {
        let mut children: Vec<_> = self.children(node).into_iter().map(|child| self.words(child)).collect();
        children.sort();
        Words(self.get(node).clone(), children)
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Words<T>(T, Vec<Words<T>>);

#[cfg(test)]
mod tests {
    use super::{Node, Tree};

    #[test]
    fn a_node_that_is_inserted_takes_the_children_that_were_there_and_no_later_ones() {
        let mut tree = Tree::new('r');
        let a = tree.add_leaf(Node::ROOT, 'a');
        let b = tree.add_leaf(a, 'b');
        let c = tree.insert_below(a, 'c');
        let d = tree.add_leaf(a, 'd');
        assert_eq!(tree.branch(b), [Node::ROOT, a, c, b]);
        assert_eq!(tree.branch(d), [Node::ROOT, a, d]);
        assert!(tree.is_above(c, b) && !tree.is_above(c, d) && !tree.is_above(c, c));
    }

    #[test]
    fn the_order_in_which_a_tree_grew_is_forgotten() {
        let mut first = Tree::new(0);
        let left = first.add_leaf(Node::ROOT, 1);
        first.add_leaf(Node::ROOT, 2);
        first.add_leaf(left, 3);
        let mut second = Tree::new(0);
        second.add_leaf(Node::ROOT, 2);
        let left = second.add_leaf(Node::ROOT, 1);
        second.add_leaf(left, 3);
        assert_ne!(first, second);
        let (canonical, places) = second.canonical();
        assert_eq!(first.canonical().0, canonical);
        assert_eq!(canonical.get(places[left.place()]), &1);
    }
}
